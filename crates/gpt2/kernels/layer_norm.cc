// Layer norm whose gradients do not depend on the number of threads.
//
// libtorch's backward pass has each thread add its rows into a buffer of its own, so that the gradients of weight and
// bias change in their last bits with the threads. Here a tile of columns is one piece of work, whichever thread does
// it: blocks of rows in order, rows within a block in order. The forward pass and the gradient of the input are
// libtorch's, row by row.
//
// Invariant: no exception leaves (guard.h).

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>

#include "guard.h"

namespace {

// Columns of a tile, and rows of a block: part of the arithmetic.
constexpr int64_t kColumns = 64;
constexpr int64_t kRows = 32;

// sum += over all rows of d * (x - mean) * rstd, and of d.
void add_tile(const float* d, const float* x, const float* mean, const float* rstd, int64_t rows, int64_t columns,
              int64_t first, float* d_weight, float* d_bias) {
  const int64_t width = std::min(kColumns, columns - first);
  std::array<float, kColumns> weight{}, bias{};
  for (int64_t block = 0; block < rows; block += kRows) {
    std::array<float, kColumns> block_weight{}, block_bias{};
    for (int64_t row = block; row < std::min(block + kRows, rows); ++row) {
      const float* d_row = d + row * columns + first;
      const float* x_row = x + row * columns + first;
      for (int64_t j = 0; j < width; ++j) {
        block_weight[j] += d_row[j] * ((x_row[j] - mean[row]) * rstd[row]);
        block_bias[j] += d_row[j];
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      weight[j] += block_weight[j];
      bias[j] += block_bias[j];
    }
  }
  std::copy_n(weight.begin(), width, d_weight + first);
  std::copy_n(bias.begin(), width, d_bias + first);
}

class FixedLayerNorm : public torch::autograd::Function<FixedLayerNorm> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, double epsilon) {
    const auto input = x.contiguous();
    auto [y, mean, rstd] = at::native_layer_norm(input, {input.size(-1)}, weight, bias, epsilon);
    context->save_for_backward({input, weight, mean, rstd});
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &mean = saved[2], &rstd = saved[3];
    const auto d = gradients[0].contiguous();
    const int64_t columns = x.size(-1), rows = x.numel() / columns;
    auto d_x = std::get<0>(at::native_layer_norm_backward(d, x, {columns}, mean, rstd, weight, std::nullopt,
                                                          {true, false, false}));
    auto d_weight = at::empty({columns}, x.options()), d_bias = at::empty({columns}, x.options());
    const auto *d_values = d.const_data_ptr<float>(), *x_values = x.const_data_ptr<float>();
    const auto *means = mean.const_data_ptr<float>(), *rstds = rstd.const_data_ptr<float>();
    auto *weights = d_weight.data_ptr<float>(), *biases = d_bias.data_ptr<float>();
    at::parallel_for(0, (columns + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        add_tile(d_values, x_values, means, rstds, rows, columns, tile * kColumns, weights, biases);
      }
    });
    return {d_x, d_weight, d_bias, at::Tensor()};
  }
};

}  // namespace

extern "C" {

// The layer norm of float32 tensors in host memory, as a new tensor; null after a failure. The arguments are tensors of
// libtorch.
void* ckptd_layer_norm(const void* x, const void* weight, const void* bias, double epsilon) {
  return ckptd::guarded<void*>(nullptr, [&] {
    const auto tensor = [](const void* pointer) -> const at::Tensor& {
      return *static_cast<const at::Tensor*>(pointer);
    };
    return new at::Tensor(FixedLayerNorm::apply(tensor(x), tensor(weight), tensor(bias), epsilon));
  });
}

}
