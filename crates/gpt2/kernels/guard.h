// What stands between libtorch's exceptions and callers in another language.
//
// Invariant: after an exception null is returned, and ckptd_kernel_error has its text, on the same thread.

#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace ckptd {

inline thread_local std::string last_error;

template <class Work>
void* guarded(Work work) {
  try {
    return work();
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "an exception of an unknown type";
  }
  return nullptr;
}

}  // namespace ckptd
