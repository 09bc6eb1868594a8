#pragma once

namespace gloo::transport {

// Opaque: passed from one libtorch function to another inside a shared_ptr.
class Device;

} // namespace gloo::transport
