// csrc/cuda.cu over cuda_runtime.h beside this file, behind functions that ctypes can call.
#include "../../../csrc/cuda.cu"
#include "../wire.h"

void shim_run(dim3 grid, dim3 block, void** arguments) {
  const fastinit::gpu::Table& table = *static_cast<const fastinit::gpu::Table*>(arguments[0]);
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) fastinit::gpu::fill_table(table);
  }
}

extern "C" {

// The message of the exception, or null.
const char* shim_fill(const int64_t* tensors, size_t tensors_n, const int64_t* recipe, size_t recipe_n,
                      const double* params, size_t params_n, int device, uintptr_t stream) {
  static std::string message;
  try {
    fastinit::Owned owned;
    fastinit::fill_cuda(fastinit::from_wire({tensors, tensors + tensors_n}, {recipe, recipe + recipe_n},
                                            {params, params + params_n}, owned),
                        device, stream);
  } catch (const std::exception& e) {
    message = e.what();
    return message.c_str();
  }
  return nullptr;
}

const char* shim_cuda_error(int device) {
  static std::string message;
  message = fastinit::cuda_error(device);
  return message.c_str();
}

Shim* shim_state() { return &shim; }
}
