// The fill loop on a GPU. A launch serves a whole table of fills, which travels as the kernel's argument: nothing to
// upload, no lifetime to keep, and a CUDA graph holds a copy. A thread block finds its fill by bisection and does one
// chunk of it.
//
// Long runs of neighbouring elements are written 16 bytes a thread; whatever that leaves (ragged ends, strides,
// regions, far tails) goes element by element, a block of the generator a thread. A sparse fill is a scan down each
// column.
#define FASTINIT_ISA gpu
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>

#include "cuda.h"
#include "distributions.h"
#include "philox.h"

namespace fastinit {
namespace gpu {

constexpr int kThreads = 128, kBlocksAnSm = 4;
constexpr int kTableWords = 4095;  // 32,760 of the 32,764 bytes that a kernel's arguments may take

// Word 0: the number of entries. Then for each entry the first chunk that is its own (low half) and where it lies in
// `words` (high half). The entries themselves lie at the end.
struct Table {
  uint64_t words[kTableWords];
};

// How an entry is done.
enum class Path : int8_t { run, rows, elements, sparse };

// An entry: this, then (unless it has no dimensions) the items in a row and `dims` times size, stride and jump, then
// its steps, then the constants of its distribution.
struct Entry {
  unsigned char* data;
  uint64_t
      items;  // what threads do one of at a time: 16 bytes; or a block in a row; or an element; or part of a column
  uint64_t first;  // run: the number of the first block; else: the logical index of the first element
  uint64_t seed, stream;
  int8_t kind, dtype, item_size, dims, far, chunk_log2;
  Path path;
  int8_t steps;
};
constexpr int kEntryWords = sizeof(Entry) / 8;
static_assert(sizeof(Entry) == 48, "entries are made of words");

struct Dim {
  int64_t size, stride, jump;
};
struct Layout {
  uint64_t per_row;  // items in a row
  Dim dims[kMaxDims + 1];
};
// Words of it that an entry of so many dimensions has; and those of so many steps.
__host__ __device__ inline int layout_words(int dims) { return dims > 0 ? 1 + 3 * dims : 0; }
__host__ __device__ inline int program_words(int steps) { return steps * static_cast<int>(sizeof(Step) / 8); }

// ---- the kernel -----------------------------------------------------------------------------------------------------

FASTINIT_FN void store16_bytes(unsigned char* to, const U e[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(e[0], e[1], e[2], e[3]);
}

// 16 bytes of consecutive elements, from `block` on.
template <class Of, class D>
FASTINIT_FN void sixteen_bytes(U block, const Philox& p, const Fill& fill, U out[4]) {
  constexpr int kBlocks = 4 / D::kBytes;
#pragma unroll
  for (int v = 0; v < kBlocks; ++v) {
    U w[4], e[4];
    philox(block + v, p, w);
    Of::values(w, fill, e);
    if constexpr (D::kBytes == 4) {
      for (int j = 0; j < 4; ++j) out[j] = e[j];
    } else if constexpr (D::kBytes == 2) {
      out[2 * v] = D::round(e[0]) | D::round(e[1]) << 16;
      out[2 * v + 1] = D::round(e[2]) | D::round(e[3]) << 16;
    } else {
      out[v] = D::round(e[0]) | D::round(e[1]) << 8 | D::round(e[2]) << 16 | D::round(e[3]) << 24;
    }
  }
}

// float64: a block is 16 bytes.
template <void (*values)(const uint32_t w[4], const Fill&, double e[2])>
struct Of64 {
  FASTINIT_FN void sixteen_bytes(U block, const Philox& p, const Fill& fill, U out[4]) {
    U w[4];
    double e[2];
    philox(block, p, w);
    values(w, fill, e);
    for (int j = 0; j < 2; ++j) {
      const uint64_t b = bits64(e[j]);
      out[2 * j] = static_cast<U>(b);
      out[2 * j + 1] = static_cast<U>(b >> 32);
    }
  }
  static constexpr int kBlocks = 1;
};

template <class Of, class D>
struct Of32 {
  FASTINIT_FN void sixteen_bytes(U block, const Philox& p, const Fill& fill, U out[4]) {
    gpu::sixteen_bytes<Of, D>(block, p, fill, out);
  }
  static constexpr int kBlocks = 4 / D::kBytes;
};

struct Chunk {
  uint64_t begin, count;  // items of the entry
};

FASTINIT_FN Chunk chunk_of(const Entry& entry, uint32_t number) {
  const uint64_t begin = static_cast<uint64_t>(number) << entry.chunk_log2;
  const uint64_t most = static_cast<uint64_t>(1) << entry.chunk_log2;
  return {begin, entry.items - begin < most ? entry.items - begin : most};
}

// The hot loop. All blocks of an entry share the high half of their number.
template <class Group, int kUnroll>
FASTINIT_FN void run(const Entry& entry, const Fill& fill, uint32_t number) {
  const Chunk chunk = chunk_of(entry, number);
  const uint64_t first = entry.first + chunk.begin * Group::kBlocks;
  const Philox p = philox_prepare(entry.seed, entry.stream, static_cast<uint32_t>(first >> 32));
  U block = static_cast<uint32_t>(first) + threadIdx.x * Group::kBlocks;
  unsigned char* to = entry.data + (chunk.begin + threadIdx.x) * 16;
  int32_t left = static_cast<int32_t>(chunk.count) - static_cast<int32_t>(threadIdx.x);
#pragma unroll 1
  for (; left > (kUnroll - 1) * kThreads; left -= kUnroll * kThreads) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      U out[4];
      Group::sixteen_bytes(block + u * kThreads * Group::kBlocks, p, fill, out);
      store16_bytes(to + u * kThreads * 16, out);
    }
    block += kUnroll * kThreads * Group::kBlocks;
    to += kUnroll * kThreads * 16;
  }
  if constexpr (kUnroll > 1) {
#pragma unroll 1
    for (; left > 0; left -= kThreads) {
      U out[4];
      Group::sixteen_bytes(block, p, fill, out);
      store16_bytes(to, out);
      block += kThreads * Group::kBlocks;
      to += kThreads * 16;
    }
  }
}

FASTINIT_FN void run_constant(const Entry& entry, const uint64_t* pattern, uint32_t number) {
  const Chunk chunk = chunk_of(entry, number);
  const U out[4] = {static_cast<U>(pattern[0]), static_cast<U>(pattern[0] >> 32), static_cast<U>(pattern[1]),
                    static_cast<U>(pattern[1] >> 32)};
  for (uint64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    store16_bytes(entry.data + (chunk.begin + i) * 16, out);
  }
}

FASTINIT_FN void divide(uint64_t a, uint64_t b, uint64_t& quotient, uint64_t& rest) {
  if ((a | b) >> 32) {
    quotient = a / b;
    rest = a % b;
  } else {
    quotient = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    rest = static_cast<uint32_t>(a) % static_cast<uint32_t>(b);
  }
}

// A row of the region: the elements along its last dimension.
struct Row {
  uint64_t index;  // logical, of its first element
  unsigned char* to;
  uint64_t rest;  // which of the row's items
};

FASTINIT_FN Row row_of(const Entry& entry, const Layout& layout, uint64_t item) {
  const Dim* dims = layout.dims;
  Row row;
  uint64_t at, number;
  divide(item, layout.per_row, number, row.rest);
  row.index = entry.first;
  int64_t offset = 0;
  for (int d = entry.dims - 2; d >= 0; --d) {
    divide(number, static_cast<uint64_t>(dims[d].size), number, at);
    row.index += at * static_cast<uint64_t>(dims[d].jump);
    offset += static_cast<int64_t>(at) * dims[d].stride;
  }
  row.to = entry.data + offset * entry.item_size;
  return row;
}

FASTINIT_FN DType dtype_of(const Entry& entry) { return static_cast<DType>(entry.dtype); }

FASTINIT_FN U round_to(DType dtype, U x) {
  switch (dtype) {
    case DType::f16:
      return F16::round(x);
    case DType::bf16:
      return BF16::round(x);
    case DType::e4m3:
      return E4M3::round(x);
    case DType::e5m2:
      return E5M2::round(x);
    default:
      return x;
  }
}

FASTINIT_FN void store_element(unsigned char* to, int size, uint64_t bits) {
  if (size == 8) {
    *reinterpret_cast<uint64_t*>(to) = bits;
  } else if (size == 4) {
    *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(bits);
  } else if (size == 2) {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bits);
  } else {
    *to = static_cast<unsigned char>(bits);
  }
}

// A whole block of neighbours, aligned to its size: neighbouring threads write neighbouring places.
template <int elements>
FASTINIT_FN void store_block(unsigned char* to, int size, const uint64_t e[elements]) {
  if constexpr (elements == 2) {
    *reinterpret_cast<ulonglong2*>(to) = make_ulonglong2(e[0], e[1]);
  } else if (size == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(static_cast<uint32_t>(e[0]), static_cast<uint32_t>(e[1]),
                                               static_cast<uint32_t>(e[2]), static_cast<uint32_t>(e[3]));
  } else if (size == 2) {
    *reinterpret_cast<uint64_t*>(to) = e[0] | e[1] << 16 | e[2] << 32 | e[3] << 48;
  } else {
    *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(e[0] | e[1] << 8 | e[2] << 16 | e[3] << 24);
  }
}

FASTINIT_FN const Step* program_of(const Entry& entry, const Layout& layout) {
  return reinterpret_cast<const Step*>(reinterpret_cast<const uint64_t*>(&layout) + layout_words(entry.dims));
}

FASTINIT_FN void words_of_block(const Entry& entry, uint64_t stream, uint64_t block, U w[4]) {
  philox(static_cast<uint32_t>(block), philox_prepare(entry.seed, stream, static_cast<uint32_t>(block >> 32)), w);
}

// The values of a block of one distribution, after the entry's steps, as bit patterns: 4 of float32 or 2 of float64.
template <class Of>
struct Values32 {
  static constexpr int kElements = 4;
  FASTINIT_FN void values(const U w[4], const Entry& entry, const Step* program, const Fill& fill, uint64_t out[4]) {
    U e[4];
    Of::values(w, fill, e);
    run_steps(program, entry.steps, e);
    for (int j = 0; j < 4; ++j) out[j] = round_to(dtype_of(entry), e[j]);
  }
};
template <void (*block)(const uint32_t w[4], const Fill&, double e[2])>
struct Values64 {
  static constexpr int kElements = 2;
  FASTINIT_FN void values(const U w[4], const Entry& entry, const Step* program, const Fill& fill, uint64_t out[2]) {
    double e[2];
    block(w, fill, e);
    run_steps64(program, entry.steps, e);
    for (int j = 0; j < 2; ++j) out[j] = bits64(e[j]);
  }
};

// Any layout: an item is one block of the generator in one row, of which it stores the elements inside the row.
template <class Values>
FASTINIT_FN void rows(const Entry& entry, const Layout& layout, const Fill& fill, uint32_t number,
                      uint64_t first_block = 0) {
  constexpr int kElements = Values::kElements;
  const Chunk chunk = chunk_of(entry, number);
  const Dim& last = layout.dims[entry.dims - 1];
  const Step* program = program_of(entry, layout);
#pragma unroll 1
  for (uint64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    const Row row = row_of(entry, layout, chunk.begin + i);
    const uint64_t block = row.index / kElements + row.rest;
    U w[4];
    uint64_t e[kElements];
    words_of_block(entry, entry.stream, first_block + block, w);
    Values::values(w, entry, program, fill, e);
    const int64_t start = static_cast<int64_t>(block * kElements - row.index);
    unsigned char* to = row.to + start * last.stride * entry.item_size;
    const bool whole = last.stride == 1 && start >= 0 && start + kElements <= last.size;
    if (whole && reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(kElements * entry.item_size) == 0) {
      store_block<kElements>(to, entry.item_size, e);
      continue;
    }
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int64_t at = start + j;
      if (at >= 0 && at < last.size) store_element(to + j * last.stride * entry.item_size, entry.item_size, e[j]);
    }
  }
}

// Whether the logical element `index` is one of the ones.
FASTINIT_FN bool on_diagonal(const Diagonals& c, uint64_t index) {
  if (index < static_cast<uint64_t>(c.start)) return false;
  // Groups do not overlap: the last one that starts at or before the element is the only one that can hold it.
  uint64_t group, d, rest;
  divide(index - static_cast<uint64_t>(c.start), static_cast<uint64_t>(c.group_step), group, rest);
  if (group >= static_cast<uint64_t>(c.groups)) {
    rest += (group - static_cast<uint64_t>(c.groups) + 1) * static_cast<uint64_t>(c.group_step);
  }
  divide(rest, static_cast<uint64_t>(c.step), d, rest);
  return c.groups > 0 && rest == 0 && d < static_cast<uint64_t>(c.count);
}

// Constants and diagonals in any layout: an item is one element.
FASTINIT_FN void elements(const Entry& entry, const Layout& layout, const uint64_t* constants, uint32_t number) {
  const Chunk chunk = chunk_of(entry, number);
  const Dim& last = layout.dims[entry.dims - 1];
  const bool diagonals = static_cast<Kind>(entry.kind) == Kind::diagonals;
#pragma unroll 1
  for (uint64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    const Row row = row_of(entry, layout, chunk.begin + i);
    unsigned char* to = row.to + static_cast<int64_t>(row.rest) * last.stride * entry.item_size;
    bool one = true;
    if (diagonals) {
      one = on_diagonal(*reinterpret_cast<const Diagonals*>(constants + 2),
                        row.index + row.rest * static_cast<uint64_t>(last.jump));
    }
    const uint64_t low = one ? constants[0] : 0, high = one ? constants[1] : 0;
    if (entry.item_size == 16) {
      store_element(to, 8, low);
      store_element(to + 8, 8, high);
    } else {
      store_element(to, entry.item_size, low);
    }
  }
}

// Knuth's Algorithm S down a column. An item is a part of a column of the region: it counts the zeros above its rows,
// which takes the words alone, and then writes its rows.
template <class Values>
FASTINIT_FN void sparse(const Entry& entry, const Layout& layout, const Sparse& c, const Fill& numbers,
                        uint32_t number) {
  const Dim* dims = layout.dims;
  constexpr int kElements = Values::kElements;
  const Chunk chunk = chunk_of(entry, number);
  for (uint64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    uint64_t part, column;
    divide(chunk.begin + i, static_cast<uint64_t>(dims[1].size), part, column);
    const int64_t begin = c.row0 + static_cast<int64_t>(part * layout.per_row);
    int64_t end = begin + static_cast<int64_t>(layout.per_row);
    if (end > c.row0 + dims[0].size) end = c.row0 + dims[0].size;
    U left = static_cast<uint32_t>(c.zeros);
    uint64_t index = static_cast<uint64_t>(c.col0) + column;
    const auto zero = [&](int64_t row) {
      U w[4];
      words_of_block(entry, c.stream, index / 4, w);
      const U low = index & 1 ? w[1] : w[0], high = index & 1 ? w[3] : w[2];
      const uint64_t product = static_cast<uint64_t>(index & 2 ? high : low) * static_cast<uint32_t>(c.rows - row);
      const bool z = static_cast<uint32_t>(product >> 32) < left;
      left -= z;
      return z;
    };
#pragma unroll 4
    for (int64_t row = 0; row < begin; ++row) {
      zero(row);
      index += static_cast<uint64_t>(c.cols);
    }
    unsigned char* to =
        entry.data +
        ((begin - c.row0) * dims[0].stride + static_cast<int64_t>(column) * dims[1].stride) * entry.item_size;
#pragma unroll 1
    for (int64_t row = begin; row < end; ++row) {
      const bool z = zero(row);
      U w[4];
      uint64_t e[kElements];
      words_of_block(entry, entry.stream, index / kElements, w);
      Values::values(w, entry, nullptr, numbers, e);
      uint64_t value = index & 1 ? e[1] : e[0];
      if constexpr (kElements == 4) {
        if (index & 2) value = index & 1 ? e[3] : e[2];
      }
      store_element(to, entry.item_size, z ? 0 : value);
      to += dims[0].stride * entry.item_size;
      index += static_cast<uint64_t>(c.cols);
    }
  }
}

// A fill that has nothing but the constants of one distribution.
template <class Constants, Constants Fill::* member>
FASTINIT_FN Fill with(const uint64_t* constants) {
  Fill fill;
  fill.*member = *reinterpret_cast<const Constants*>(constants);
  return fill;
}

template <class Group, int kUnroll, class Values>
FASTINIT_FN void any_path(const Entry& entry, const Layout& layout, const Fill& fill, uint32_t number) {
  if (entry.path == Path::run) {
    run<Group, kUnroll>(entry, fill, number);
  } else {
    rows<Values>(entry, layout, fill, number);
  }
}

// kUnroll: how many times 16 bytes a thread writes per turn of the hot loop, to spread the loop's own instructions.
template <class Of, int kUnroll>
FASTINIT_FN void any_dtype(const Entry& entry, const Layout& layout, const Fill& fill, uint32_t number) {
  if (entry.path != Path::run) return rows<Values32<Of>>(entry, layout, fill, number);
  switch (dtype_of(entry)) {
    case DType::f16:
      return run<Of32<Of, F16>, 1>(entry, fill, number);
    case DType::bf16:
      return run<Of32<Of, BF16>, 1>(entry, fill, number);
    case DType::e4m3:
      return run<Of32<Of, E4M3>, 1>(entry, fill, number);
    case DType::e5m2:
      return run<Of32<Of, E5M2>, 1>(entry, fill, number);
    default:
      return run<Of32<Of, F32>, kUnroll>(entry, fill, number);
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksAnSm) fill_table(const __grid_constant__ Table table) {
  uint32_t low = 0, high = static_cast<uint32_t>(table.words[0]) - 1;
  while (low < high) {
    const uint32_t middle = (low + high + 1) / 2;
    if (static_cast<uint32_t>(table.words[1 + middle]) <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const uint64_t index = table.words[1 + low];
  const uint32_t number = blockIdx.x - static_cast<uint32_t>(index);
  const uint64_t* at = table.words + (index >> 32);
  const Entry& entry = *reinterpret_cast<const Entry*>(at);
  const Layout& layout = *reinterpret_cast<const Layout*>(at + kEntryWords);
  const uint64_t* constants = at + kEntryWords + layout_words(entry.dims) + program_words(entry.steps);
  switch (static_cast<Kind>(entry.kind)) {
    case Kind::bits:
      if (entry.path == Path::run) return run<Of32<BitsOf, F32>, 4>(entry, Fill(), number);
      return rows<Values32<BitsOf>>(entry, layout, Fill(), number, constants[0]);
    case Kind::uniform:
      if (dtype_of(entry) == DType::f64) {
        const Fill fill = with<Uniform<double>, &Fill::uniform_f64>(constants);
        return any_path<Of64<uniform_block64>, 2, Values64<uniform_block64>>(entry, layout, fill, number);
      }
      return any_dtype<UniformOf, 4>(entry, layout, with<Uniform<float>, &Fill::uniform_f32>(constants), number);
    case Kind::normal:
      if (dtype_of(entry) == DType::f64) {
        const Fill fill = with<Normal<double>, &Fill::normal_f64>(constants);
        return any_path<Of64<normal_block64>, 1, Values64<normal_block64>>(entry, layout, fill, number);
      }
      return any_dtype<NormalOf, 4>(entry, layout, with<Normal<float>, &Fill::normal_f32>(constants), number);
    case Kind::truncated_normal: {
      using Block64 = Values64<truncated_normal_block64>;
      using Block32 = Values32<TruncatedNormalOf>;
      if (dtype_of(entry) == DType::f64) {
        Fill fill = with<TruncatedNormal<double>, &Fill::truncated_f64>(constants);
        if ((fill.truncated_f64.far = entry.far)) return rows<Block64>(entry, layout, fill, number);
        return any_path<Of64<truncated_normal_block64>, 1, Block64>(entry, layout, fill, number);
      }
      Fill fill = with<TruncatedNormal<float>, &Fill::truncated_f32>(constants);
      if ((fill.truncated_f32.far = entry.far)) return rows<Block32>(entry, layout, fill, number);
      return any_dtype<TruncatedNormalOf, 4>(entry, layout, fill, number);
    }
    case Kind::sparse: {
      const Sparse& c = *reinterpret_cast<const Sparse*>(constants);
      Fill fill;
      if (dtype_of(entry) == DType::f64) {
        fill.normal_f64 = {0.0, c.std_f64};
        return sparse<Values64<normal_block64>>(entry, layout, c, fill, number);
      }
      Fill fill32;
      fill32.normal_f32 = {0.0f, c.std_f32};
      return sparse<Values32<NormalOf>>(entry, layout, c, fill32, number);
    }
    default:
      if (entry.path == Path::run) return run_constant(entry, constants, number);
      return elements(entry, layout, constants, number);
  }
}

}  // namespace gpu

// ---- from fills to tables -------------------------------------------------------------------------------------------

namespace {

using gpu::Dim;
using gpu::Entry;
using gpu::Layout;
using gpu::Path;

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

// Entries gather until a table is full, which is then launched.
class Tables {
 public:
  explicit Tables(cudaStream_t stream) : stream_(stream) { clear(); }

  // An entry, with its steps and `bytes` of constants.
  void add(const Entry& entry, const Layout& layout, const Step* program, const void* constants, size_t bytes) {
    const int place = gpu::layout_words(entry.dims), steps = gpu::program_words(entry.steps);
    const int words = gpu::kEntryWords + place + steps + static_cast<int>((bytes + 7) / 8);
    const uint64_t chunks = ((entry.items - 1) >> entry.chunk_log2) + 1;
    if (1 + count_ + 1 + words > end_ || chunks_ + chunks > kMaxChunks) launch();
    if (chunks > kMaxChunks) throw std::runtime_error("CUDA: a fill is too large for one launch");
    end_ -= words;
    uint64_t* at = table_.words + end_;
    std::memcpy(at, &entry, sizeof(entry));
    std::memcpy(at + gpu::kEntryWords, &layout, 8 * static_cast<size_t>(place));
    std::memcpy(at + gpu::kEntryWords + place, program, 8 * static_cast<size_t>(steps));
    std::memcpy(at + gpu::kEntryWords + place + steps, constants, bytes);
    table_.words[1 + count_++] = static_cast<uint64_t>(end_) << 32 | chunks_;
    chunks_ += chunks;
  }

  void launch() {
    if (count_ == 0) return;
    table_.words[0] = static_cast<uint64_t>(count_);
    void* arguments[] = {&table_};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(gpu::fill_table), dim3(static_cast<uint32_t>(chunks_)),
                           dim3(gpu::kThreads), arguments, 0, stream_),
          "launching a table of fills");
    clear();
  }

 private:
  static constexpr uint64_t kMaxChunks = 0x7fffffff;

  void clear() {
    count_ = 0;
    end_ = gpu::kTableWords;
    chunks_ = 0;
  }

  cudaStream_t stream_;
  gpu::Table table_;
  int count_, end_;
  uint64_t chunks_;
};

// Items a thread block does: as many as leave a few thousand blocks to spread over the device, if there are so many.
int8_t chunk_log2(uint64_t items) {
  int log2 = 10;
  while (log2 < 13 && (items >> log2) > 8192) ++log2;
  return static_cast<int8_t>(log2);
}

size_t constants_of(const Fill& fill, const void*& at) {
  const bool f64 = fill.dtype == DType::f64;
  at = fill.kind == Kind::bits ? static_cast<const void*>(&fill.first_block) : &fill.uniform_f32;  // the union
  switch (fill.kind) {
    case Kind::bits:
      return sizeof(fill.first_block);
    case Kind::uniform:
      return f64 ? sizeof(Uniform<double>) : sizeof(Uniform<float>);
    case Kind::normal:
      return f64 ? sizeof(Normal<double>) : sizeof(Normal<float>);
    case Kind::truncated_normal:
      return f64 ? sizeof(TruncatedNormal<double>) : sizeof(TruncatedNormal<float>);
    case Kind::sparse:
      return sizeof(Sparse);
    default:
      return 0;
  }
}

bool patterned(const Fill& fill) { return fill.kind == Kind::constant || fill.kind == Kind::diagonals; }

// `count` elements along the first of `fill`'s dimensions, from `from` on; the rest as it is.
Fill slice(Fill fill, int64_t from, int64_t count) {
  fill.data += from * fill.strides[0] * fill.item_size;
  fill.first += static_cast<uint64_t>(from * fill.jumps[0]);
  fill.sizes[0] = count;
  return fill;
}

Entry entry_of(const Fill& fill) {
  Entry entry{};
  entry.data = fill.data;
  entry.first = fill.first;
  entry.seed = fill.seed;
  entry.stream = fill.stream;
  entry.kind = static_cast<int8_t>(fill.kind);
  entry.dtype = static_cast<int8_t>(fill.dtype);
  entry.item_size = static_cast<int8_t>(fill.item_size);
  entry.steps = static_cast<int8_t>(fill.steps);
  if (fill.kind == Kind::truncated_normal) {
    entry.far = (fill.dtype == DType::f64 ? fill.truncated_f64.far : fill.truncated_f32.far) != 0;
  }
  return entry;
}

// Any layout, element by element.
void add_scattered(Tables& tables, const Fill& fill) {
  if (fill.numel() == 0) return;
  Entry entry = entry_of(fill);
  Layout layout;
  Dim* dims = layout.dims;
  uint64_t rows = 1;
  int n = 0;
  for (; n < fill.dims; ++n) {
    dims[n] = {fill.sizes[n], fill.strides[n], fill.jumps[n]};
    rows *= static_cast<uint64_t>(fill.sizes[n]);
  }
  // Along the last dimension elements share blocks if they are neighbours in the logical tensor.
  if (dims[n - 1].jump != 1 && n <= kMaxDims && !patterned(fill)) dims[n++] = {1, 1, 1};
  rows /= static_cast<uint64_t>(dims[n - 1].size);
  entry.dims = static_cast<int8_t>(n);
  const uint64_t length = static_cast<uint64_t>(dims[n - 1].size);
  if (patterned(fill)) {
    entry.path = Path::elements;
    layout.per_row = length;
  } else {
    entry.path = Path::rows;
    // As many blocks as a row can touch, wherever in a block it starts.
    const uint64_t elements = fill.dtype == DType::f64 ? 2 : 4;
    layout.per_row = (length + 2 * elements - 2) / elements;
  }
  entry.items = rows * layout.per_row;
  entry.chunk_log2 = chunk_log2(entry.items);
  if (patterned(fill)) {
    uint64_t constants[2 + sizeof(Diagonals) / 8] = {fill.pattern[0], fill.pattern[1]};
    std::memcpy(constants + 2, &fill.diagonals, sizeof(Diagonals));
    tables.add(entry, layout, fill.program, constants, fill.kind == Kind::diagonals ? sizeof(constants) : 16);
    return;
  }
  const void* constants;
  const size_t bytes = constants_of(fill, constants);
  tables.add(entry, layout, fill.program, constants, bytes);
}

// `count` times 16 bytes, all of whose blocks share the high half of their number.
void add_run(Tables& tables, const Fill& fill, uint64_t count) {
  Entry entry = entry_of(fill);
  const Layout none{};
  entry.path = Path::run;
  entry.items = count;
  entry.chunk_log2 = chunk_log2(count);
  if (fill.kind == Kind::constant) {
    unsigned char pattern[16];
    for (int i = 0; i < 16; i += fill.item_size) {
      std::memcpy(pattern + i, fill.pattern, static_cast<size_t>(fill.item_size));
    }
    tables.add(entry, none, fill.program, pattern, 16);
    return;
  }
  entry.first = fill.first_block + fill.first / (fill.dtype == DType::f64 ? 2 : 4);
  const void* constants;
  const size_t bytes = constants_of(fill, constants);
  tables.add(entry, none, fill.program, constants, bytes);
}

void add_sparse(Tables& tables, const Fill& fill) {
  // Enough parts of columns to fill a device; the shorter they are, the more often the words above are drawn again.
  constexpr uint64_t kThreadsWanted = 1 << 16, kRows = 64;
  const uint64_t rows = static_cast<uint64_t>(fill.sizes[0]), columns = static_cast<uint64_t>(fill.sizes[1]);
  uint64_t parts = kThreadsWanted / columns;
  if (parts > rows / kRows) parts = rows / kRows;
  if (parts < 1) parts = 1;
  Entry entry = entry_of(fill);
  Layout layout;
  for (int d = 0; d < 2; ++d) layout.dims[d] = {fill.sizes[d], fill.strides[d], fill.jumps[d]};
  entry.path = Path::sparse;
  entry.dims = 2;
  layout.per_row = (rows + parts - 1) / parts;
  entry.items = (rows + layout.per_row - 1) / layout.per_row * columns;
  entry.chunk_log2 = 7;
  tables.add(entry, layout, fill.program, &fill.sparse, sizeof(Sparse));
}

void add(Tables& tables, Fill fill) {
  if (fill.numel() == 0) return;
  if (reinterpret_cast<uintptr_t>(fill.data) % static_cast<uintptr_t>(fill.item_size == 16 ? 8 : fill.item_size)) {
    throw std::runtime_error("CUDA: a tensor's elements are not aligned to their size");
  }
  if (fill.kind == Kind::sparse) return add_sparse(tables, fill);
  const bool constant = fill.kind == Kind::constant;
  const Entry entry = entry_of(fill);
  const bool together = fill.dims == 1 && fill.strides[0] == 1 && (constant || fill.jumps[0] == 1);
  if (!together || entry.far || entry.steps > 0 || fill.kind == Kind::diagonals) return add_scattered(tables, fill);

  // A ragged head, then 16 bytes at a time, then a ragged tail. Each 16 bytes are whole blocks, in whose numbers the
  // high half does not change.
  const int64_t per = 16 / fill.item_size;
  const auto boundary = [&](const Fill& f) {  // elements before the first that may start 16 bytes
    const uint64_t at = constant ? reinterpret_cast<uintptr_t>(f.data) / static_cast<uint64_t>(f.item_size) : f.first;
    return static_cast<int64_t>((0 - at) % static_cast<uint64_t>(per));
  };
  const int64_t n = fill.sizes[0], head = boundary(fill) < n ? boundary(fill) : n;
  if (reinterpret_cast<uintptr_t>(fill.data + head * fill.item_size) % 16) return add_scattered(tables, fill);
  add_scattered(tables, slice(fill, 0, head));
  int64_t at = head;
  while (n - at >= per) {
    int64_t count = (n - at) / per;
    const Fill body = slice(fill, at, count * per);
    if (!constant) {
      const uint64_t blocks = static_cast<uint64_t>(fill.dtype == DType::f64 ? per / 2 : per / 4);
      const uint64_t block = body.first_block + body.first / (fill.dtype == DType::f64 ? 2 : 4);
      const uint64_t left = ((uint64_t{1} << 32) - static_cast<uint32_t>(block)) / blocks;
      if (static_cast<uint64_t>(count) > left) count = static_cast<int64_t>(left);
    }
    add_run(tables, body, static_cast<uint64_t>(count));
    at += count * per;
  }
  add_scattered(tables, slice(fill, at, n - at));
}

}  // namespace

void fill_cuda(const std::vector<Fill>& fills, int device, uintptr_t stream) {
  const CurrentDevice guard(device);
  Tables tables(reinterpret_cast<cudaStream_t>(stream));
  for (const Fill& fill : fills) add(tables, fill);
  tables.launch();
}

std::string cuda_error() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count > 0 ? "" : "no CUDA device";
}

}  // namespace fastinit
