// What stands between libtorch's exceptions and callers in another language.
//
// Invariant: none leaves `guarded`; its text is what ckptd_last_error returns on the same thread.

#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace ckptd {

inline thread_local std::string last_error;

// What `body` returns, or `failed` after an exception.
template <typename T, typename Body>
T guarded(T failed, Body body) noexcept {
  try {
    return body();
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "an exception of an unknown type";
  }
  return failed;
}

}  // namespace ckptd
