// The CPU backend's face: one batch of fills in, nothing out.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "fill.h"

namespace fastinit {

// Runs every fill, on at most `threads` threads, whatever the shapes.
void fill_cpu(const std::vector<Fill>& fills, int threads);

// Which of the compiled instruction sets serves, best first in `instruction_sets`.
std::vector<std::string> instruction_sets();
std::string instruction_set();
void set_instruction_set(const std::string& name);

// One compilation of cpu_kernels.cpp.
struct Kernels {
  // The elements [begin, end) of the region, counted row-major.
  void (*range)(const Fill& fill, int64_t begin, int64_t end);
  // The columns [begin, end) of the region of a sparse fill.
  void (*sparse_columns)(const Fill& fill, int64_t begin, int64_t end);
};

}  // namespace fastinit
