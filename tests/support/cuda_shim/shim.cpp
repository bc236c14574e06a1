// csrc/cuda.cu over cuda_runtime.h beside this file, behind functions that ctypes can call.
#include "../../../csrc/cuda.cu"
#include "../wire.h"

template <int kWords>
void run(dim3 grid, dim3 block, void** arguments) {
  using namespace fastinit::gpu;
  const Table<kWords>& table = *static_cast<const Table<kWords>*>(arguments[0]);
  shim.words = kWords;
  for (uint64_t i = 1; i <= table.words[0]; ++i) {
    const Entry& entry = *reinterpret_cast<const Entry*>(table.words + (table.words[i] >> 32));
    ++shim.entries[static_cast<int>(entry.path)];
    shim.plain += entry.plain;
    shim.chunk = 1 << entry.chunk_log2;
  }
  for (blockIdx.x = static_cast<unsigned>(shim.skip); blockIdx.x < grid.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) fill_table<kWords>(table);
  }
}

void shim_run(const void* kernel, dim3 grid, dim3 block, void** arguments) {
  (kernel == fastinit::kSmall ? run<fastinit::gpu::kSmallTableWords> : run<fastinit::gpu::kTableWords>)(grid, block,
                                                                                                        arguments);
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
