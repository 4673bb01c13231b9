// The few calls of c10d that the ranks of a training need, as C functions: a process group of gloo whose store is the
// caller's, sends and receives of float32, and waiting for them.
//
// Invariant: no exception leaves (guard.h). A group is never destroyed: its destructor may wait for peers that are
// gone, and the process ends with the training anyway.

#define USE_C10D_GLOO 1

#include <ATen/Version.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "guard.h"

extern "C" {
// What the caller's store does. `get` waits, appends the value to `sink` by ckptd_c10d_fill, and returns 0; anything
// else is a failure, as it is of `set`.
struct CkptdStoreCalls {
  void* context;
  int (*set)(void* context, const char* key, size_t key_size, const uint8_t* value, size_t value_size);
  int (*get)(void* context, const char* key, size_t key_size, uint64_t timeout_ms, void* sink);
};
}

namespace {

class CallerStore : public c10d::Store {
 public:
  CallerStore(const CkptdStoreCalls& calls, std::chrono::milliseconds timeout) : c10d::Store(timeout), calls_(calls) {}

  c10::intrusive_ptr<c10d::Store> clone() override {
    return c10::make_intrusive<CallerStore>(calls_, timeout_);
  }

  void set(const std::string& key, const std::vector<uint8_t>& value) override {
    TORCH_CHECK(calls_.set(calls_.context, key.data(), key.size(), value.data(), value.size()) == 0,
                "the ranks' store did not take ", key);
  }

  std::vector<uint8_t> get(const std::string& key) override {
    return fetch(key, timeout_);
  }

  void wait(const std::vector<std::string>& keys) override {
    wait(keys, timeout_);
  }

  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override {
    for (const auto& key : keys) {
      fetch(key, timeout);
    }
  }

  int64_t add(const std::string&, int64_t) override {
    TORCH_CHECK(false, "the ranks' store cannot add");
  }

  bool deleteKey(const std::string&) override {
    return false;
  }

  bool check(const std::vector<std::string>&) override {
    TORCH_CHECK(false, "the ranks' store cannot check");
  }

  int64_t getNumKeys() override {
    TORCH_CHECK(false, "the ranks' store cannot count");
  }

 private:
  std::vector<uint8_t> fetch(const std::string& key, std::chrono::milliseconds timeout) {
    std::vector<uint8_t> value;
    TORCH_CHECK(calls_.get(calls_.context, key.data(), key.size(), timeout.count(), &value) == 0,
                "no rank has said ", key, " in time");
    return value;
  }

  CkptdStoreCalls calls_;
};

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

struct Transfer {
  c10::intrusive_ptr<c10d::Work> work;
};

at::Tensor floats(float* values, size_t count) {
  return at::from_blob(values, {static_cast<int64_t>(count)}, at::TensorOptions().dtype(at::kFloat));
}

}  // namespace

extern "C" {

// How libtorch was built, and which of its kernels it takes on this processor.
const char* ckptd_c10d_libtorch() {
  static const std::string config = ckptd::guarded<std::string>("", [] { return at::show_config(); });
  return config.c_str();
}

void ckptd_c10d_fill(void* sink, const uint8_t* value, size_t size) {
  auto& bytes = *static_cast<std::vector<uint8_t>*>(sink);
  bytes.insert(bytes.end(), value, value + size);
}

// Connects `size` ranks with one another, listening at `address` alone; null after a failure.
void* ckptd_c10d_connect(const CkptdStoreCalls* calls, int rank, int size, const char* address, uint64_t timeout_ms) {
  return ckptd::guarded<void*>(nullptr, [&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    options->threads = 1;
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<CallerStore>(*calls, timeout);
    return new Group{c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options)};
  });
}

// Begins to send; the values must stay as they are until the transfer has ended. Null after a failure.
void* ckptd_c10d_send(void* group, const float* values, size_t count, int peer, int tag) {
  return ckptd::guarded<void*>(nullptr, [&] {
    std::vector<at::Tensor> tensors{floats(const_cast<float*>(values), count)};
    return new Transfer{static_cast<Group*>(group)->gloo->send(tensors, peer, tag)};
  });
}

// Begins to receive into `values`, which nobody else may touch until the transfer has ended. Null after a failure.
void* ckptd_c10d_receive(void* group, float* values, size_t count, int peer, int tag) {
  return ckptd::guarded<void*>(nullptr, [&] {
    std::vector<at::Tensor> tensors{floats(values, count)};
    return new Transfer{static_cast<Group*>(group)->gloo->recv(tensors, peer, tag)};
  });
}

// Waits for a transfer: 0 when it is complete, 1 after a failure or when the time is over.
int ckptd_c10d_wait(void* transfer, uint64_t timeout_ms) {
  return ckptd::guarded<int>(1, [&] {
    return static_cast<Transfer*>(transfer)->work->wait(std::chrono::milliseconds(timeout_ms)) ? 0 : 1;
  });
}

// Ends a transfer, complete or not: its memory is not used any more.
void ckptd_c10d_end(void* transfer) {
  ckptd::guarded<int>(1, [&] {
    delete static_cast<Transfer*>(transfer);
    return 0;
  });
}

}
