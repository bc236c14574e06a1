// The CUDA backend's face: one batch of fills in, work on a stream out. Nothing waits for the device.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "fill.h"

namespace fastinit {

// Enqueues every fill on `stream` (a cudaStream_t) of `device`, one launch for each table of them. The calling thread's
// current device is the same afterwards. Throws std::runtime_error, which names the cause, if CUDA refuses.
void fill_cuda(const std::vector<Fill>& fills, int device, uintptr_t stream);

// Why this device cannot run the kernels; empty if it can. It is asked itself: whether the build has code for it, or
// what the driver can compile to such, depends on both.
std::string cuda_error(int device);

}  // namespace fastinit
