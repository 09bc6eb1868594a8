#pragma once
#include <chrono>
#include <gloo/transport/unbound_buffer.h>

namespace gloo {

// Opaque: made, owned and destroyed inside libtorch.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

} // namespace gloo
