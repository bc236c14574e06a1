// The CPU backend's face: one batch of fills in, nothing out.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fill.h"

namespace fastinit {

class Helpers;  // the worker pool

// Fills that are being run, on at most `threads` threads, whatever the shapes: others begin at once, so that the caller
// can prepare the next batch meanwhile; the caller's thread joins in finish(), after which all is done.
class Batch {
 public:
  // `fresh`: the memory is new, or at least what was there does not matter to anybody's caches.
  Batch(std::vector<Fill> fills, int threads, bool fresh);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  void finish();

 private:
  struct Job;
  std::unique_ptr<Job> job_;
  Helpers* helpers_ = nullptr;
};

// A batch that is too small for any of that: on the caller's thread alone.
void fill_here(const std::vector<Fill>& fills);

// call(0), ..., call(count - 1), each once, on at most `threads` threads, this one among them. None may throw.
void in_parallel(int threads, size_t count, const std::function<void(size_t)>& call);

// Asks the system for huge pages where these fills will be the first to touch memory.
void ask_for_huge_pages(const std::vector<Fill>& fills);

// Which of the compiled instruction sets serves, best first in `instruction_sets`.
std::vector<std::string> instruction_sets();
std::string instruction_set();
void set_instruction_set(const std::string& name);

// What setup.py compiles the kernels for on this architecture.
#if defined(__x86_64__)
#define FASTINIT_INSTRUCTION_SETS(use) use(scalar) use(avx2) use(avx512)
#elif defined(__aarch64__)
#define FASTINIT_INSTRUCTION_SETS(use) use(scalar) use(neon)
#else
#define FASTINIT_INSTRUCTION_SETS(use) use(scalar)
#endif

// One compilation of cpu_kernels.cpp.
struct Kernels {
  // The elements [begin, end) of the region, counted row-major.
  void (*range)(const Fill& fill, int64_t begin, int64_t end);
  // The columns [begin, end) of the region of a sparse fill.
  void (*sparse_columns)(const Fill& fill, int64_t begin, int64_t end);
};

}  // namespace fastinit
