// The fill loop. Compiled once per instruction set (FASTINIT_ISA), each time in a namespace of its own, and without any
// standard template, whose code the linker might share with a machine that lacks the instructions.
#include "cpu.h"
#include "distributions.h"
#include "philox.h"

namespace fastinit {
namespace FASTINIT_ISA {

// A tile is what one call of the generator over lanes gives: the 4 words of kLanes consecutive blocks.
constexpr int kTile = 4 * kLanes;

FASTINIT_FN U order_of(int bytes) { return bytes == 4 ? order32() : bytes == 2 ? order16() : order8(); }

// One tile's elements in order, in the destination's format.
template <class D, bool non_temporal = false>
FASTINIT_FN void store(void* to, const U e[4]) {
  if constexpr (D::kBytes == 4) {
    store32<non_temporal>(to, e);
  } else if constexpr (D::kBytes == 2) {
    const U n[4] = {D::round(e[0]), D::round(e[1]), D::round(e[2]), D::round(e[3])};
    store16<non_temporal>(to, bit_or(n[0], shl<16>(n[1])), bit_or(n[2], shl<16>(n[3])));
  } else {
    const U n[4] = {D::round(e[0]), D::round(e[1]), D::round(e[2]), D::round(e[3])};
    store8<non_temporal>(to, bit_or(bit_or(n[0], shl<8>(n[1])), bit_or(shl<16>(n[2]), shl<24>(n[3]))));
  }
}

// The generator at one place of a stream: remembers what the blocks share until the high half of their number changes.
class Stream {
 public:
  // `first_block` is that of logical index 0: raw bits may begin anywhere.
  Stream(uint64_t seed, uint64_t stream, uint64_t first_block = 0)
      : first_block(first_block), seed_(seed), stream_(stream), philox_(philox_prepare(seed, stream, 0)) {}
  const uint64_t first_block;
  // `block` is a multiple of kLanes, so that no lane carries into the high half.
  const Philox& at(uint64_t block) {
    const uint32_t hi = static_cast<uint32_t>(block >> 32);
    if (hi != hi_) philox_ = philox_prepare(seed_, stream_, hi_ = hi);
    return philox_;
  }

 private:
  uint64_t seed_, stream_;
  uint32_t hi_ = 0;
  Philox philox_;
};

// Tiles that are made side by side: the generator is a chain of rounds, and a processor that could do more at a time
// has nothing else to do.
constexpr int kSideBySide = 2;

// `n` whole tiles to consecutive addresses.
template <class Dist, class D, int n, bool non_temporal>
FASTINIT_FN void tiles_of(const typename Dist::Constants& c, const Philox& p, U& blocks, unsigned char*& to) {
  U at[n], w[n][4], e[4];
#pragma GCC unroll 2
  for (int i = 0; i < n; ++i) {
    at[i] = blocks;
    blocks = add(blocks, splat(static_cast<uint32_t>(kLanes)));
  }
  philox(at, p, w);
#pragma GCC unroll 2
  for (int i = 0; i < n; ++i) {
    Dist::values(w[i], c, e);
    store<D, non_temporal>(to, e);
    to += kTile * D::kBytes;
  }
}

// Not inlined: the loop has all registers to itself.
template <class Dist, class D>
__attribute__((noinline)) void tiles32(const typename Dist::Constants& constants, const Philox& shared, uint32_t block,
                                       int64_t tiles, unsigned char* to, bool non_temporal) {
  const Philox p = shared;
  const typename Dist::Constants c = constants;
  U blocks = add(order_of(D::kBytes), splat(block));
  if (kNonTemporal && non_temporal && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    for (; tiles >= kSideBySide; tiles -= kSideBySide) tiles_of<Dist, D, kSideBySide, kNonTemporal>(c, p, blocks, to);
  }
  for (; tiles >= kSideBySide; tiles -= kSideBySide) tiles_of<Dist, D, kSideBySide, false>(c, p, blocks, to);
  static_assert(kSideBySide == 2, "one is left at most");
  if (tiles > 0) tiles_of<Dist, D, 1, false>(c, p, blocks, to);
}

// `count` consecutive logical elements from `index` on, to `to`, `stride` elements apart. `constants` are Dist's.
template <class Dist, class D>
void run32(const void* constants, Stream& stream, uint64_t index, int64_t count, unsigned char* to, int64_t stride,
           bool non_temporal) {
  const auto& c = *static_cast<const typename Dist::Constants*>(constants);
  alignas(64) unsigned char part[kTile * D::kBytes];
  const U order = order_of(D::kBytes);
  while (count > 0) {
    const uint64_t block = stream.first_block + index / kTile * kLanes;
    const int skip = static_cast<int>(index % kTile);
    const Philox& philox_at = stream.at(block);
    if (skip == 0 && count >= kTile && stride == 1) {
      // Whole tiles, up to the next change of the high half.
      const uint64_t left = (static_cast<uint64_t>(1) << 32) - static_cast<uint32_t>(block);
      int64_t tiles = count / kTile;
      if (static_cast<uint64_t>(tiles) > left / kLanes) tiles = static_cast<int64_t>(left / kLanes);
      tiles32<Dist, D>(c, philox_at, static_cast<uint32_t>(block), tiles, to, non_temporal);
      to += tiles * kTile * D::kBytes;
      index += static_cast<uint64_t>(tiles) * kTile;
      count -= tiles * kTile;
      continue;
    }
    U w[4], e[4];
    philox(add(order, splat(static_cast<uint32_t>(block))), philox_at, w);
    Dist::values(w, c, e);
    store<D>(part, e);
    const int take = static_cast<int>(count < kTile - skip ? count : kTile - skip);
    if (stride == 1) {
      memcpy(to, part + skip * D::kBytes, static_cast<size_t>(take * D::kBytes));
    } else {
      for (int i = 0; i < take; ++i) memcpy(to + i * stride * D::kBytes, part + (skip + i) * D::kBytes, D::kBytes);
    }
    to += take * stride * D::kBytes;
    index += static_cast<uint64_t>(take);
    count -= take;
  }
}

// The same in float64, whose functions are over plain doubles: the compiler makes vectors of the loop over blocks.
template <class Dist>
void run64(const void* constants, Stream& stream, uint64_t index, int64_t count, unsigned char* to, int64_t stride,
           bool /* of no use here: the tiles are stored by memcpy */) {
  const auto& c = *static_cast<const typename Dist::Constants*>(constants);
  constexpr int elements = 2 * kLanes;  // of a tile
  alignas(64) uint32_t words[4][kLanes];
  alignas(64) double part[elements];
  while (count > 0) {
    const uint64_t block = index / elements * kLanes;
    const int skip = static_cast<int>(index % elements);
    const int take = static_cast<int>(count < elements - skip ? count : elements - skip);
    U lanes[4];
    philox(add(order8(), splat(static_cast<uint32_t>(block))), stream.at(block), lanes);  // in ascending order
    for (int j = 0; j < 4; ++j) put(words[j], lanes[j]);
    for (int b = skip / 2; b < (skip + take + 1) / 2; ++b) {
      const uint32_t w[4] = {words[0][b], words[1][b], words[2][b], words[3][b]};
      double e[2];
      Dist::values(w, c, e);
      part[2 * b] = e[0];
      part[2 * b + 1] = e[1];
    }
    if (stride == 1) {
      memcpy(to, part + skip, static_cast<size_t>(take) * 8);
    } else {
      for (int i = 0; i < take; ++i) memcpy(to + i * stride * 8, part + skip + i, 8);
    }
    to += take * stride * 8;
    index += static_cast<uint64_t>(take);
    count -= take;
  }
}

using Run = void (*)(const void* constants, Stream&, uint64_t index, int64_t count, unsigned char* to, int64_t stride,
                     bool non_temporal);

template <class Dist>
Run run_for(DType dtype) {
  return with_format(dtype, [](auto format) -> Run { return run32<Dist, decltype(format)>; });
}

Run run_for(const Fill& fill) {
  const bool f64 = fill.dtype == DType::f64;
  if (fill.steps > 0) return f64 ? run64<ProgramDist64> : run_for<ProgramDist>(fill.dtype);
  switch (fill.kind) {
    case Kind::bits:
      return run32<BitsDist, F32>;
    case Kind::uniform:
      return f64 ? run64<UniformDist64> : run_for<UniformDist>(fill.dtype);
    case Kind::normal:
      return f64 ? run64<NormalDist64> : run_for<NormalDist>(fill.dtype);
    case Kind::truncated_normal:
      return f64 ? run64<TruncatedNormalDist64> : run_for<TruncatedNormalDist>(fill.dtype);
    default:
      return nullptr;
  }
}

// Copies of one element; `pattern` is 64 bytes of them.
void put_constant(unsigned char* to, const unsigned char* pattern, int size, int64_t count, int64_t stride) {
  if (stride == 1) {
    int64_t bytes = count * size;
    for (; bytes >= 64; bytes -= 64, to += 64) memcpy(to, pattern, 64);
    memcpy(to, pattern, static_cast<size_t>(bytes));
  } else {
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * stride * size, pattern, static_cast<size_t>(size));
  }
}

// Ones among `count` elements from the logical `index` on: the first d-th one at or after it, group by group.
void put_diagonals(const Fill& fill, int64_t index, int64_t count, unsigned char* to, int64_t stride) {
  const Diagonals& c = fill.constants.diagonals;
  const int64_t end = index + count;
  int64_t g = index < c.start ? 0 : (index - c.start) / c.group_step;
  for (; g < c.groups && c.start + g * c.group_step < end; ++g) {
    const int64_t base = c.start + g * c.group_step;
    int64_t d = index <= base ? 0 : (index - base + c.step - 1) / c.step;
    for (; d < c.count && base + d * c.step < end; ++d) {
      memcpy(to + (base + d * c.step - index) * stride * fill.item_size, fill.pattern,
             static_cast<size_t>(fill.item_size));
    }
  }
}

void range(const Fill& fill, int64_t begin, int64_t end) {
  const int last = fill.dims - 1;
  const int size = fill.item_size;
  // The innermost dimension is a run when its elements are neighbours in the logical tensor; else each is one.
  const bool together = fill.logical_strides[last] == 1;
  const int64_t length = fill.sizes[last];
  const Run run = run_for(fill);
  const Program program = {fill.kind, &fill.constants, fill.program, fill.steps};
  const void* const constants = fill.steps > 0 ? static_cast<const void*>(&program) : &fill.constants;
  Stream stream(fill.seed, fill.stream, fill.first_block);
  alignas(64) unsigned char pattern[64] = {};
  if (fill.kind == Kind::constant) {
    for (int i = 0; i < 64; i += size) memcpy(pattern + i, fill.pattern, static_cast<size_t>(size));
  }
  while (begin < end) {
    uint64_t index = fill.first;
    unsigned char* to = fill.data;
    int64_t rest = begin;
    for (int d = last; d >= 0; --d) {
      const int64_t at = rest % fill.sizes[d];
      rest /= fill.sizes[d];
      index += static_cast<uint64_t>(at * fill.logical_strides[d]);
      to += at * fill.strides[d] * size;
    }
    int64_t count = 1;
    if (together || fill.kind == Kind::constant) {
      const int64_t room = length - begin % length;
      count = end - begin < room ? end - begin : room;
    }
    const int64_t stride = fill.strides[last];
    if (run) {
      run(constants, stream, index, count, to, stride, fill.non_temporal);
    } else {
      put_constant(to, pattern, size, count, stride);
      if (fill.kind == Kind::diagonals) put_diagonals(fill, static_cast<int64_t>(index), count, to, stride);
    }
    begin += count;
  }
  if (kNonTemporal && fill.non_temporal) fence();
}

// `width` neighbours of a row to where they belong: those that `keep` has ones for, and zeros.
template <class T>
void put_row(unsigned char* to, int64_t stride, const void* values, const int32_t* keep, int width) {
  const T* __restrict from = static_cast<const T*>(values);
  T* __restrict out = reinterpret_cast<T*>(to);
  if (stride == 1) {
    for (int j = 0; j < width; ++j) out[j] = from[j] & static_cast<T>(keep[j]);
  } else {
    for (int j = 0; j < width; ++j) out[j * stride] = from[j] & static_cast<T>(keep[j]);
  }
}

// Knuth's Algorithm S down each column: row r of R is zero iff mulhi(word, R - r) < zeros still to place. Turns a row's
// words into ones for what is kept.
void choose(uint32_t* words, uint32_t* left, uint32_t remaining, int width) {
  for (int j = 0; j < width; j += kLanes) {
    U high, low;
    mul_wide(load(words + j), remaining, high, low);
    const U before = load(left + j);
    const Mask zero = greater(before, high);
    put(left + j, select(zero, sub(before, splat(1u)), before));
    put(words + j, select(zero, splat(0u), splat(~0u)));
  }
}

void sparse_columns(const Fill& fill, int64_t begin, int64_t end) {
  constexpr int kWidth = 1024;
  const Sparse& c = fill.constants.sparse;
  const int size = fill.item_size;
  const int64_t rows = fill.sizes[0];
  Stream values(fill.seed, fill.stream), choices(fill.seed, c.stream);
  const bool f64 = fill.dtype == DType::f64;
  const Run normal = f64 ? Run(run64<NormalDist64>) : run_for<NormalDist>(fill.dtype);
  const void* const constants = f64 ? static_cast<const void*>(&c.normal_f64) : &c.normal_f32;
  alignas(64) uint32_t words[kWidth] = {}, left[kWidth] = {};
  static_assert(kWidth % kLanes == 0, "the last lane of a row may be a part, but not reach beyond");
  alignas(64) unsigned char row_values[kWidth * 8];
  const BitsDist::Constants none{};
  for (int64_t col = begin; col < end; col += kWidth) {
    const int width = static_cast<int>(end - col < kWidth ? end - col : kWidth);
    for (int j = 0; j < width; ++j) left[j] = static_cast<uint32_t>(c.zeros);
    for (int64_t row = 0; row < c.row0 + rows; ++row) {
      const uint64_t index = static_cast<uint64_t>(row * c.cols + c.col0 + col);
      const bool inside = row >= c.row0;
      unsigned char* to = fill.data + (inside ? ((row - c.row0) * fill.strides[0] + col * fill.strides[1]) * size : 0);
      if (inside && fill.strides[1] == 1) {
        // The row is stored in one go below: were its lines not there by then, the stores of the next words would wait.
        for (int at = 0; at < width * size; at += 64) __builtin_prefetch(to + at, 1);
      }
      run32<BitsDist, F32>(&none, choices, index, width, reinterpret_cast<unsigned char*>(words), 1, false);
      choose(words, left, static_cast<uint32_t>(c.rows - row), width);
      if (!inside) continue;
      normal(constants, values, index, width, row_values, 1, false);
      const int32_t* keep = reinterpret_cast<const int32_t*>(words);
      switch (size) {
        case 1:
          put_row<uint8_t>(to, fill.strides[1], row_values, keep, width);
          break;
        case 2:
          put_row<uint16_t>(to, fill.strides[1], row_values, keep, width);
          break;
        case 4:
          put_row<uint32_t>(to, fill.strides[1], row_values, keep, width);
          break;
        default:
          put_row<uint64_t>(to, fill.strides[1], row_values, keep, width);
      }
    }
  }
}

extern const Kernels kernels;
const Kernels kernels = {range, sparse_columns};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
