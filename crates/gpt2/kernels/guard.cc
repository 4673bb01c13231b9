#include "guard.h"

extern "C" const char* ckptd_last_error() {
  return ckptd::last_error.c_str();
}
