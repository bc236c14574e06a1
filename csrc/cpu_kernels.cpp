// The fill loop. Compiled once per instruction set (FASTINIT_ISA), each time in a namespace of its own, and without any
// standard template, whose code the linker might share with a machine that lacks the instructions.
#include "cpu.h"
#include "distributions.h"
#include "mixture.h"
#include "pending.h"
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

template <class Dist, class D>
__attribute__((noinline)) void blocks32(const void* constants, const Philox& shared, const uint32_t* numbers, int count,
                                        unsigned char* to) {
  const Philox p = shared;
  const typename Dist::Constants c = *static_cast<const typename Dist::Constants*>(constants);
  const U order = order_of(D::kBytes);
  for (int first = 0; first < count; first += kSideBySide * kLanes) {
    U at[kSideBySide], w[kSideBySide][4], e[4];
    for (int i = 0; i < kSideBySide; ++i) at[i] = permute(order, load(numbers + first + i * kLanes));
    philox(at, p, w);
    for (int i = 0; i < kSideBySide; ++i) {
      Dist::values(w[i], c, e);
      store<D>(to, e);
      to += kTile * D::kBytes;
    }
  }
}

// The same in float64, whose functions are over plain doubles: the compiler makes vectors of the loop over blocks.
template <class Dist>
void blocks64(const void* constants, const Philox& p, const uint32_t* numbers, int count, unsigned char* to) {
  const typename Dist::Constants c = *static_cast<const typename Dist::Constants*>(constants);
  alignas(64) uint32_t words[4][kLanes];
  alignas(64) double part[2 * kLanes];
  for (; count > 0; count -= kLanes, numbers += kLanes) {
    U lanes[4];
    philox(load(numbers), p, lanes);
    for (int j = 0; j < 4; ++j) put(words[j], lanes[j]);
    const int blocks = count < kLanes ? count : kLanes;
    for (int b = 0; b < blocks; ++b) {
      const uint32_t w[4] = {words[0][b], words[1][b], words[2][b], words[3][b]};
      double e[2];
      Dist::values(w, c, e);
      part[2 * b] = e[0];
      part[2 * b + 1] = e[1];
    }
    memcpy(to, part, static_cast<size_t>(blocks) * 16);
    to += blocks * 16;
  }
}

// `count` consecutive logical elements from `index` on, to `to`, `stride` elements apart: whole tiles here, the rest
// through `pending`. `constants` are Dist's.
using Run = void (*)(const void* constants, Stream&, Pending&, uint64_t index, int64_t count, unsigned char* to,
                     int64_t stride, bool non_temporal);

template <class Dist, class D>
void run32(const void* constants, Stream& stream, Pending& pending, uint64_t index, int64_t count, unsigned char* to,
           int64_t stride, bool non_temporal) {
  const auto pass = [&](int64_t elements) {
    index += static_cast<uint64_t>(elements);
    count -= elements;
    to += elements * stride * D::kBytes;
  };
  const auto wait = [&](int64_t elements) {
    pending.add(index, elements, to, stride);
    pass(elements);
  };
  if (stride == 1 && count >= kTile) wait(static_cast<int64_t>(-index % 4));
  while (stride == 1 && count >= kTile) {
    const uint64_t block = stream.first_block + index / 4;
    // Up to the next change of the high half, which no lane may carry into.
    const int64_t left = (int64_t{1} << 32) - static_cast<uint32_t>(block);
    const int64_t tiles = count / kTile < left / kLanes ? count / kTile : left / kLanes;
    if (tiles == 0) {
      wait(left * 4);
    } else {
      const auto& c = *static_cast<const typename Dist::Constants*>(constants);
      tiles32<Dist, D>(c, stream.at(block), static_cast<uint32_t>(block), tiles, to, non_temporal);
      pass(tiles * kTile);
    }
  }
  pending.add(index, count, to, stride);
}

void run64(const void*, Stream&, Pending& pending, uint64_t index, int64_t count, unsigned char* to, int64_t stride,
           bool) {
  pending.add(index, count, to, stride);
}

// The two ways to make a distribution's values in a dtype.
struct Ways {
  Run run;
  Make make;
  int size;
};

template <class Dist>
Ways ways_for(DType dtype) {
  return with_format(dtype, [](auto format) -> Ways {
    using D = decltype(format);
    return {run32<Dist, D>, blocks32<Dist, D>, D::kBytes};
  });
}

template <class Dist>
Ways ways64() {
  return {run64, blocks64<Dist>, 8};
}

Ways ways_for(const Fill& fill) {
  const bool f64 = fill.dtype == DType::f64;
  if (fill.steps > 0) return f64 ? ways64<ProgramDist64>() : ways_for<ProgramDist>(fill.dtype);
  switch (fill.kind) {
    case Kind::bits:
      return ways_for<BitsDist>(DType::f32);
    case Kind::uniform:
      return f64 ? ways64<UniformDist64>() : ways_for<UniformDist>(fill.dtype);
    case Kind::normal:
      return f64 ? ways64<NormalDist64>() : ways_for<NormalDist>(fill.dtype);
    case Kind::truncated_normal:
      return f64 ? ways64<TruncatedNormalDist64>() : ways_for<TruncatedNormalDist>(fill.dtype);
    case Kind::mixture:
      if (f64) return ways64<MixtureDist64>();
      return fill.constants.mixture->normals ? ways_for<MixtureDist<true>>(fill.dtype)
                                             : ways_for<MixtureDist<false>>(fill.dtype);
    default:
      return {};
  }
}

// Writes elements of one draw, run by run. What was written is there after `finish`.
class Writer {
 public:
  Writer(const Ways& ways, const void* constants, uint64_t seed, uint64_t stream, uint64_t first_block = 0)
      : run_(ways.run),
        constants_(constants),
        stream_(seed, stream, first_block),
        pending_(ways.make, constants, stream_, ways.size) {}
  void write(uint64_t index, int64_t count, unsigned char* to, int64_t stride, bool non_temporal = false) {
    if (count < kTile || stride != 1) return pending_.add(index, count, to, stride);
    run_(constants_, stream_, pending_, index, count, to, stride, non_temporal);
  }
  void finish() { pending_.flush(); }

 private:
  Run run_;
  const void* constants_;
  Stream stream_;
  Pending pending_;
};

// A place in a region, which moves along its elements row-major.
class Place {
 public:
  Place(const Fill& fill, int64_t element) : fill_(fill), last_(fill.dims - 1), index(fill.first), to(fill.data) {
    for (int d = last_; d >= 0; --d) {
      at_[d] = 0;
      move(d, element % fill.sizes[d]);
      element /= fill.sizes[d];
    }
  }
  // What is left of the row.
  int64_t room() const { return fill_.sizes[last_] - at_[last_]; }
  // `count` elements on, at most to the row's end.
  void advance(int64_t count) {
    move(last_, count);
    for (int d = last_; d > 0 && at_[d] == fill_.sizes[d]; --d) {
      move(d, -fill_.sizes[d]);
      move(d - 1, 1);
    }
  }

 private:
  void move(int d, int64_t count) {
    at_[d] += count;
    index += static_cast<uint64_t>(count * fill_.logical_strides[d]);
    to += count * fill_.strides[d] * fill_.item_size;
  }

  const Fill& fill_;
  const int last_;
  int64_t at_[kMaxDims];

 public:
  uint64_t index;  // in the logical tensor
  unsigned char* to;
};

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

// The run of elements at a place that are neighbours in the logical tensor, or may be taken for such.
int64_t run_at(const Place& place, bool together, int64_t most) {
  const int64_t room = together ? place.room() : 1;
  return room < most ? room : most;
}

void random_range(const Fill& fill, const Ways& ways, int64_t begin, int64_t end) {
  const int last = fill.dims - 1;
  const Program program = {fill.kind, &fill.constants, fill.program, fill.steps};
  const void* const constants = fill.steps > 0 ? static_cast<const void*>(&program) : &fill.constants;
  Writer writer(ways, constants, fill.seed, fill.stream, fill.first_block);
  const bool together = fill.logical_strides[last] == 1;
  for (Place place(fill, begin); begin < end;) {
    const int64_t count = run_at(place, together, end - begin);
    writer.write(place.index, count, place.to, fill.strides[last], fill.non_temporal);
    place.advance(count);
    begin += count;
  }
  writer.finish();
  if (kNonTemporal && fill.non_temporal) fence();
}

void range(const Fill& fill, int64_t begin, int64_t end) {
  const Ways ways = ways_for(fill);
  if (ways.run) return random_range(fill, ways, begin, end);
  const int last = fill.dims - 1;
  alignas(64) unsigned char pattern[64] = {};
  if (fill.kind == Kind::constant) {
    for (int i = 0; i < 64; i += fill.item_size) memcpy(pattern + i, fill.pattern, static_cast<size_t>(fill.item_size));
  }
  const bool together = fill.logical_strides[last] == 1 || fill.kind == Kind::constant;
  for (Place place(fill, begin); begin < end;) {
    const int64_t count = run_at(place, together, end - begin), stride = fill.strides[last];
    put_constant(place.to, pattern, fill.item_size, count, stride);
    if (fill.kind == Kind::diagonals) {
      put_diagonals(fill, static_cast<int64_t>(place.index), count, place.to, stride);
    }
    place.advance(count);
    begin += count;
  }
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
  const bool f64 = fill.dtype == DType::f64;
  const BitsDist::Constants none{};
  const void* const constants = f64 ? static_cast<const void*>(&c.normal_f64) : &c.normal_f32;
  Writer choices(ways_for<BitsDist>(DType::f32), &none, fill.seed, c.stream);
  Writer values(f64 ? ways64<NormalDist64>() : ways_for<NormalDist>(fill.dtype), constants, fill.seed, fill.stream);
  alignas(64) uint32_t words[kWidth] = {}, left[kWidth] = {};
  static_assert(kWidth % kLanes == 0, "the last lane of a row may be a part, but not reach beyond");
  alignas(64) unsigned char row_values[kWidth * 8];
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
      choices.write(index, width, reinterpret_cast<unsigned char*>(words), 1);
      choices.finish();
      choose(words, left, static_cast<uint32_t>(c.rows - row), width);
      if (!inside) continue;
      values.write(index, width, row_values, 1);
      values.finish();
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
