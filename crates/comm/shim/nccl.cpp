// Compiled with feature `cuda` only.
#include "shim.h"

#include <cstdlib>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" {

// A group over one CUDA device a rank. Communicators are made by the first collective.
bool pleach_nccl_group(
    PleachStore* store,
    int32_t rank,
    int32_t world,
    int32_t device_index,
    int64_t timeout_ms,
    PleachGroup** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    // Left alone, c10d's watchdog and heartbeat end the process on an error or a slow step; here the caller decides.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 0);
    setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 0);
    const std::chrono::milliseconds timeout(timeout_ms);
    auto opts = c10d::ProcessGroupNCCL::Options::create();
    opts->timeout = timeout;
    const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(device_index));
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store->store, rank, world, opts);
    backend->setBoundDeviceId(device);
    *out = new PleachGroup{std::move(backend), timeout, device};
  });
}

// Ends pending collectives from another thread.
bool pleach_group_abort(PleachGroup* group, PleachFailure* failure) {
  return pleach_guard(failure, [&] { group->backend->abort(); });
}

} // extern "C"
