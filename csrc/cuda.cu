// From tables of fills (tables.h) to launches: a thread block finds its fill by bisection and does one chunk of it
// (cuda_kernels.cuh).
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda.h"
#include "cuda_kernels.cuh"

namespace fastinit {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

// The calling thread's current device, put back at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&saved_), "asking for the current device");
    changed_ = saved_ != device;
    if (changed_) check(cudaSetDevice(device), "choosing the device");
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(saved_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int saved_ = 0;
  bool changed_ = false;
};

const void* const kLarge = reinterpret_cast<const void*>(gpu::fill_table<gpu::kTableWords>);
const void* const kSmall = reinterpret_cast<const void*>(gpu::fill_table<gpu::kSmallTableWords>);

}  // namespace

void fill_cuda(const std::vector<Fill>& fills, int device, uintptr_t stream) {
  const CurrentDevice guard(device);
  gpu::tabulate(fills, [stream](uint64_t* table, int words, uint32_t chunks) {
    void* arguments[] = {table};
    check(cudaLaunchKernel(words == gpu::kTableWords ? kLarge : kSmall, dim3(chunks), dim3(gpu::kThreads), arguments, 0,
                           reinterpret_cast<cudaStream_t>(stream)),
          "launching a table of fills");
  });
}

std::string cuda_error(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (device < 0 || device >= count) return "no CUDA device " + std::to_string(device);
  const CurrentDevice guard(device);
  cudaFuncAttributes attributes;  // asking also loads them, which could not be done while a graph is captured
  error = cudaFuncGetAttributes(&attributes, kLarge);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kSmall);
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // nobody else shall find it
  return cudaGetErrorString(error);
}

}  // namespace fastinit
