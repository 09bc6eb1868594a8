#include "shim.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <typeinfo>

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

namespace {

using std::chrono::milliseconds;

void fill(PleachFailure* failure, PleachFailureKind kind, const char* text) noexcept {
  failure->kind = kind;
  std::strncpy(failure->message, text, sizeof(failure->message) - 1);
  failure->message[sizeof(failure->message) - 1] = '\0';
}

// Gloo throws one type for lost connections and for waits that ran out; only the text tells them apart.
PleachFailureKind kind_of_gloo(const std::exception& error) noexcept {
  if (std::strstr(error.what(), "imed out") != nullptr || std::strstr(error.what(), "imeout") != nullptr) {
    return PLEACH_TIMEOUT;
  }
  // The type is not declared in any header we have, so it is known by its mangled name.
  return std::strcmp(typeid(error).name(), "N4gloo11IoExceptionE") == 0 ? PLEACH_PEER : PLEACH_OTHER;
}

// Waits for a part of the time; false means that the work is still under way. A CUDA work only orders streams, so the host
// polls it.
bool wait_for(const PleachWork& pending, milliseconds slice) {
  const auto& work = pending.work;
  if (pending.on_device) {
    const auto deadline = std::chrono::steady_clock::now() + slice;
    while (!work->isCompleted()) {
      if (std::chrono::steady_clock::now() > deadline) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    if (work->exception()) {
      std::rethrow_exception(work->exception());
    }
  } else {
    try {
      return work->wait(slice);
    } catch (...) {
      // Either the slice is over or the work failed; the work itself knows.
      if (!work->isCompleted()) {
        return false;
      }
    }
  }
  work->wait();
  return true;
}

template <typename Options>
Options options(const PleachGroup& group) {
  Options made;
  made.timeout = group.timeout;
  return made;
}

c10::intrusive_ptr<c10d::Work> launch(
    const PleachGroup& group,
    int32_t call,
    int32_t argument,
    at::Tensor* input,
    at::Tensor* output) {
  auto& backend = *group.backend;
  switch (call) {
    case PLEACH_ALL_REDUCE: {
      auto opts = options<c10d::AllreduceOptions>(group);
      opts.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(argument);
      std::vector<at::Tensor> tensors{*output};
      return backend.allreduce(tensors, opts);
    }
    case PLEACH_BROADCAST: {
      auto opts = options<c10d::BroadcastOptions>(group);
      opts.rootRank = argument;
      std::vector<at::Tensor> tensors{*output};
      return backend.broadcast(tensors, opts);
    }
    case PLEACH_REDUCE_SCATTER: {
      auto opts = options<c10d::ReduceScatterOptions>(group);
      opts.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(argument);
      return backend._reduce_scatter_base(*output, *input, opts);
    }
    case PLEACH_ALL_GATHER:
      return backend._allgather_base(*output, *input, options<c10d::AllgatherOptions>(group));
    case PLEACH_ALL_TO_ALL: {
      std::vector<int64_t> equal;
      return backend.alltoall_base(*output, *input, equal, equal, options<c10d::AllToAllOptions>(group));
    }
    case PLEACH_BARRIER: {
      auto opts = options<c10d::BarrierOptions>(group);
      if (group.device.is_cuda()) {
        opts.device = group.device;
      }
      return backend.barrier(opts);
    }
    default:
      throw std::invalid_argument("unknown call");
  }
}

// c10d notes every collective in a flight recorder of the whole process. Its map of groups is filled without a lock, so two
// groups whose first collectives meet tear it, and the process dies of that. It is turned off before main, while the
// process has one thread: whoever sets the variable would choose to crash.
[[maybe_unused]] const int recorder_off = setenv("TORCH_FR_BUFFER_SIZE", "0", 1);

// A peer's death is expected here and told by an error; c10d would also print a stack trace for each.
void quiet() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
    FLAGS_caffe2_log_level = 2;
  }
}

} // namespace

void pleach_describe(std::exception_ptr error, PleachFailure* failure) noexcept {
  try {
    std::rethrow_exception(error);
  } catch (const c10d::TimeoutError& e) {
    fill(failure, PLEACH_TIMEOUT, e.what_without_backtrace());
  } catch (const c10::DistNetworkError& e) {
    fill(failure, PLEACH_PEER, e.what_without_backtrace());
  } catch (const c10::DistStoreError& e) {
    fill(failure, PLEACH_TIMEOUT, e.what_without_backtrace());
  } catch (const c10::DistBackendError& e) {
    fill(failure, PLEACH_PEER, e.what_without_backtrace());
  } catch (const c10::Error& e) {
    fill(failure, kind_of_gloo(e), e.what_without_backtrace());
  } catch (const std::exception& e) {
    fill(failure, kind_of_gloo(e), e.what());
  } catch (...) {
    fill(failure, PLEACH_OTHER, "an exception that is not a std::exception");
  }
}

extern "C" {

// Serves a store on a socket that is already bound and listening, for as long as the returned store lives.
bool pleach_store_serve(
    const char* host,
    uint16_t port,
    int32_t listening_socket,
    int64_t timeout_ms,
    PleachStore** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    quiet();
    c10d::TCPStoreOptions opts;
    opts.port = port;
    opts.isServer = true;
    opts.waitWorkers = false;
    opts.timeout = milliseconds(timeout_ms);
    opts.masterListenFd = static_cast<std::size_t>(listening_socket);
    *out = new PleachStore{c10::make_intrusive<c10d::TCPStore>(host, opts)};
  });
}

// Connects to a store and puts `prefix` before every key.
bool pleach_store_connect(
    const char* host,
    uint16_t port,
    const char* prefix,
    int64_t timeout_ms,
    PleachStore** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    quiet();
    c10d::TCPStoreOptions opts;
    opts.port = port;
    opts.waitWorkers = false;
    opts.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, opts);
    *out = new PleachStore{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp))};
  });
}

bool pleach_store_set(PleachStore* store, const char* key, const char* value, PleachFailure* failure) {
  return pleach_guard(failure, [&] { store->store->set(std::string(key), std::string(value)); });
}

// Adds one to a counter and says what it is then.
bool pleach_store_count(PleachStore* store, const char* key, int64_t* value, PleachFailure* failure) {
  return pleach_guard(failure, [&] { *value = store->store->add(key, 1); });
}

// Whether the key is there now.
bool pleach_store_has(PleachStore* store, const char* key, bool* found, PleachFailure* failure) {
  return pleach_guard(failure, [&] { *found = store->store->check({std::string(key)}); });
}

// Waits for the key, up to the timeout of the store; the value is cut to `capacity - 1` bytes.
bool pleach_store_get(PleachStore* store, const char* key, char* value, size_t capacity, PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    const std::string found = store->store->get_to_str(key);
    std::strncpy(value, found.c_str(), capacity - 1);
    value[capacity - 1] = '\0';
  });
}

void pleach_store_free(PleachStore* store) {
  delete store;
}

// A transport bound to `hostname`, or to the interface when `hostname` is empty. It listens from here on.
bool pleach_gloo_device(
    const char* hostname,
    const char* interface,
    std::shared_ptr<::gloo::transport::Device>** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    using c10d::ProcessGroupGloo;
    auto device = *hostname != '\0' ? ProcessGroupGloo::createDeviceForHostname(hostname, false)
                                    : ProcessGroupGloo::createDeviceForInterface(interface, false);
    *out = new std::shared_ptr<::gloo::transport::Device>(std::move(device));
  });
}

void pleach_gloo_device_free(std::shared_ptr<::gloo::transport::Device>* device) {
  delete device;
}

// Connects this rank with all others: `setup_ms` bounds that, and every collective until `pleach_group_limit`.
bool pleach_gloo_group(
    PleachStore* store,
    std::shared_ptr<::gloo::transport::Device>* device,
    int32_t rank,
    int32_t world,
    int64_t setup_ms,
    PleachGroup** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    auto opts = c10d::ProcessGroupGloo::Options::create(milliseconds(setup_ms));
    opts->devices.push_back(*device);
    opts->threads = 1;
    auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, world, opts);
    *out = new PleachGroup{std::move(backend), milliseconds(setup_ms)};
  });
}

// How long every later collective may take.
bool pleach_group_limit(PleachGroup* group, int64_t timeout_ms, PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    group->timeout = milliseconds(timeout_ms);
    group->backend->setTimeout(group->timeout);
  });
}

// Starts one collective. `argument` is the reduction or the root; calls in place use `output` alone.
bool pleach_group_start(
    PleachGroup* group,
    int32_t call,
    int32_t argument,
    at::Tensor* input,
    at::Tensor* output,
    PleachWork** out,
    PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    *out = new PleachWork{launch(*group, call, argument, input, output), group->device.is_cuda()};
  });
}

// Waits up to `slice_ms` and says whether the collective is done.
bool pleach_work_wait(PleachWork* work, int64_t slice_ms, bool* done, PleachFailure* failure) {
  return pleach_guard(failure, [&] { *done = wait_for(*work, milliseconds(slice_ms)); });
}

void pleach_work_free(PleachWork* work) {
  delete work;
}

void pleach_group_free(PleachGroup* group) {
  delete group;
}

// Build settings of the libtorch that is loaded now, among them its version.
bool pleach_torch_config(char* text, size_t capacity, PleachFailure* failure) {
  return pleach_guard(failure, [&] {
    const std::string config = at::show_config();
    std::strncpy(text, config.c_str(), capacity - 1);
    text[capacity - 1] = '\0';
  });
}

} // extern "C"
