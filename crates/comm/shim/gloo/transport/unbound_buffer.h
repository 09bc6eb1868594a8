#pragma once

namespace gloo::transport {

// Never created here; complete so that a unique_ptr to it can be a member.
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};

} // namespace gloo::transport
