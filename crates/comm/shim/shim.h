// The C border between Rust and c10d. Every function returns false after an exception and fills `PleachFailure`; no
// exception leaves a function. Mirrored by src/ffi.rs.
#pragma once
#include <chrono>
#include <cstdint>
#include <exception>
#include <string>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

extern "C" {

enum PleachFailureKind : int32_t { PLEACH_OTHER = 0, PLEACH_PEER = 1, PLEACH_TIMEOUT = 2 };

struct PleachFailure {
  int32_t kind;
  char message[1024];
};

enum PleachCall : int32_t {
  PLEACH_ALL_REDUCE = 0,
  PLEACH_ALL_GATHER = 1,
  PLEACH_BROADCAST = 2,
  PLEACH_REDUCE_SCATTER = 3,
  PLEACH_ALL_TO_ALL = 4,
  PLEACH_BARRIER = 5,
};

} // extern "C"

struct PleachStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct PleachGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  std::chrono::milliseconds timeout;
  // Where the tensors of this group live; a CUDA collective is complete only when its event says so.
  at::Device device = at::kCPU;
};

struct PleachWork {
  c10::intrusive_ptr<c10d::Work> work;
  bool on_device;
};

// Writes the exception that is being handled into `failure`.
void pleach_describe(std::exception_ptr error, PleachFailure* failure) noexcept;

// Runs `body`; an exception becomes a filled `failure` and the result false.
template <typename Body>
bool pleach_guard(PleachFailure* failure, Body body) noexcept {
  try {
    body();
    return true;
  } catch (...) {
    pleach_describe(std::current_exception(), failure);
    return false;
  }
}
