// The state of libtorch's generator of a device, so that dropout can be drawn a second time.
//
// Invariant: no exception leaves (guard.h).

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>

#include "guard.h"

namespace {

at::Generator generator_of(int8_t device_type, int8_t index) {
  return at::globalContext().defaultGenerator(c10::Device(static_cast<c10::DeviceType>(device_type), index));
}

}  // namespace

extern "C" {

// Its state as a new tensor in host memory; null after a failure. The device as c10 numbers it, -1: the only one.
void* ckptd_generator_state(int8_t device_type, int8_t index) {
  return ckptd::guarded<void*>(nullptr, [&] {
    auto generator = generator_of(device_type, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    return new at::Tensor(generator.get_state());
  });
}

// Puts it into a state that it had. Returns the state; null after a failure.
void* ckptd_set_generator_state(int8_t device_type, int8_t index, const void* state) {
  return ckptd::guarded<void*>(nullptr, [&] {
    auto generator = generator_of(device_type, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*static_cast<const at::Tensor*>(state));
    return const_cast<void*>(state);
  });
}

}
