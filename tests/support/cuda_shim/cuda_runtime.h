// A CUDA runtime of loops: csrc/cuda.cu compiled with this header is ordinary C++, whose kernel runs on the CPU, a
// thread block and a thread at a time. So indices, tables and constants are tested without a GPU.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <utility>

#define __global__
#define __host__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x;
  explicit dim3(unsigned n) : x(n) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209
};
using cudaStream_t = struct Stream*;

// What a test sees and steers.
struct Shim {
  int devices = 2, current = 0, launches = 0, launched_on = -1;
  int without_code = -1;  // a device
  uintptr_t stream = 0;
  cudaError_t next_launch = cudaSuccess, driver = cudaSuccess;
  int skip = 0;              // so many blocks of each launch do not run; -1: none does
  int words = 0, chunk = 0;  // of the last launch's table; items in a chunk of its last entry
  int entries[5] = {};       // of all launches, by path
  int plain = 0;             // of these
};
inline Shim shim;

inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation         ? "cudaErrorMemoryAllocation"
         : e == cudaErrorInvalidDevice          ? "cudaErrorInvalidDevice"
         : e == cudaErrorInsufficientDriver     ? "cudaErrorInsufficientDriver"
         : e == cudaErrorNoKernelImageForDevice ? "cudaErrorNoKernelImageForDevice"
                                                : "cudaSuccess";
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation         ? "out of memory"
         : e == cudaErrorInvalidDevice          ? "invalid device ordinal"
         : e == cudaErrorInsufficientDriver     ? "CUDA driver version is insufficient for CUDA runtime version"
         : e == cudaErrorNoKernelImageForDevice ? "no kernel image is available for execution on the device"
                                                : "no error";
}
inline cudaError_t cudaGetDeviceCount(int* n) {
  *n = shim.devices;
  return shim.driver;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = shim.current;
  return shim.driver;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= shim.devices) return cudaErrorInvalidDevice;
  shim.current = device;
  return cudaSuccess;
}

struct cudaFuncAttributes {};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return shim.current == shim.without_code ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// Runs a kernel: shim.cpp knows their types.
void shim_run(const void* kernel, dim3 grid, dim3 block, void** arguments);

inline cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t,
                                    cudaStream_t s) {
  if (shim.next_launch != cudaSuccess) return std::exchange(shim.next_launch, cudaSuccess);
  ++shim.launches;
  shim.launched_on = shim.current;
  shim.stream = reinterpret_cast<uintptr_t>(s);
  shim_run(kernel, grid, block, arguments);
  return cudaSuccess;
}
