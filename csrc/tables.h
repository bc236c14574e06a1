// Fills for a GPU, as tables that travel as a kernel's argument: nothing to upload, no lifetime to keep, and a CUDA
// graph holds a copy. What the host packs (tables.cpp) and the kernel reads (cuda_kernels.cuh); no CUDA in it.
#pragma once
#include <stdint.h>

#include <functional>
#include <vector>

#include "fill.h"

#ifdef __CUDACC__
#define FASTINIT_BOTH __host__ __device__ inline
#else
#define FASTINIT_BOTH inline
#endif

namespace fastinit {
namespace gpu {

constexpr int kThreads = 128, kBlocksPerSm = 4;
constexpr int kTableWords = 4095;      // 32,760 of the 32,764 bytes that a kernel's arguments may take
constexpr int kSmallTableWords = 127;  // enough for a few fills: a launch copies all of its arguments

// Word 0: the number of entries. Then for each entry the first chunk that is its own (low half) and where it lies in
// `words` (high half). The entries themselves lie at the end.
template <int kWords>
struct Table {
  uint64_t words[kWords];
};

// How an entry is done. A run is 16 bytes after 16 bytes; a box is rows of such, with gaps between them in memory or in
// the logical tensor. All blocks of either share the high half of their number.
enum class Path : int8_t { run, box, rows, elements, sparse };

// An entry: this, then (unless it has no dimensions) the items in a row and `dims` times size, stride and
// logical_stride, then its steps, then the constants of its distribution.
struct Entry {
  unsigned char* data;
  uint64_t
      items;  // what threads do one of at a time: 16 bytes; or a block in a row; or an element; or part of a column
  uint64_t first;  // run, box: the number of the first block; else: the logical index of the first element
  uint64_t seed, stream;
  int8_t kind, dtype, item_size, dims;
  bool plain;  // of a truncated normal: what PlainTruncatedNormalDist asks for
  int8_t chunk_log2;
  Path path;
  int8_t steps;
};
constexpr int kEntryWords = sizeof(Entry) / 8;
static_assert(sizeof(Entry) == 48, "entries are made of words");

struct Dim {
  int64_t size, stride, logical_stride;  // of a box's rows, the latter two in bytes and in blocks
};
struct Layout {
  uint64_t per_row;  // items in a row
  Dim dims[kMaxDims + 1];
};
// Words of it that an entry of so many dimensions has; and those of so many steps.
FASTINIT_BOTH int layout_words(int dims) { return dims > 0 ? 1 + 3 * dims : 0; }
FASTINIT_BOTH int program_words(int steps) { return steps * static_cast<int>(sizeof(Step) / 8); }

// Packs fills into tables and hands over each: its words, of which there are kTableWords or, where they suffice,
// kSmallTableWords, and the number of its chunks, a thread block each.
using Launch = std::function<void(uint64_t* table, int words, uint32_t chunks)>;
void tabulate(const std::vector<Fill>& fills, const Launch& launch);

}  // namespace gpu
}  // namespace fastinit
