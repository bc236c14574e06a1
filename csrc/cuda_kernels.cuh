// The fill loop on a GPU: what a thread does with its part of a table (tables.h).
//
// Long runs of neighbouring elements are written 16 bytes a thread; whatever that leaves (ragged ends, strides,
// regions, far tails, narrow intervals and mixtures of normals) goes element by element, a block of the generator a
// thread. A sparse fill is a scan down each column.
#pragma once
#define FASTINIT_ISA gpu
#define FASTINIT_GPU
#include <cuda_runtime.h>

#include "distributions.h"
#include "mixture.h"
#include "pack.h"
#include "philox.h"
#include "tables.h"

namespace fastinit {
namespace gpu {

// ---- the kernel -----------------------------------------------------------------------------------------------------

FASTINIT_FN void store16_bytes(unsigned char* to, const U e[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(e[0], e[1], e[2], e[3]);
}

// 16 bytes of consecutive elements, from `block` on.
template <class Dist, class D>
struct Group32 {
  using Constants = typename Dist::Constants;
  static constexpr int kBlocks = 4 / D::kBytes;
  FASTINIT_FN void sixteen_bytes(U block, const Philox& p, const Constants& c, U out[4]) {
#pragma unroll
    for (int v = 0; v < kBlocks; ++v) {
      U w[4], e[4];
      philox(block + v, p, w);
      Dist::values(w, c, e);
      if constexpr (D::kBytes == 4) {
        for (int j = 0; j < 4; ++j) out[j] = e[j];
      } else if constexpr (D::kBytes == 2) {
        out[2 * v] = pack2<D>(e[0], e[1]);
        out[2 * v + 1] = pack2<D>(e[2], e[3]);
      } else {
        out[v] = pack2<D>(e[0], e[1]) | pack2<D>(e[2], e[3]) << 16;
      }
    }
  }
};

// float64: a block is 16 bytes.
template <class Dist>
struct Group64 {
  using Constants = typename Dist::Constants;
  static constexpr int kBlocks = 1;
  FASTINIT_FN void sixteen_bytes(U block, const Philox& p, const Constants& c, U out[4]) {
    U w[4];
    double e[2];
    philox(block, p, w);
    Dist::values(w, c, e);
    for (int j = 0; j < 2; ++j) {
      const uint64_t b = bits64(e[j]);
      out[2 * j] = static_cast<U>(b);
      out[2 * j + 1] = static_cast<U>(b >> 32);
    }
  }
};

struct Chunk {
  uint64_t begin, count;  // items of the entry
};

FASTINIT_FN Chunk chunk_of(const Entry& entry, uint32_t number) {
  const uint64_t begin = static_cast<uint64_t>(number) << entry.chunk_log2;
  const uint64_t most = static_cast<uint64_t>(1) << entry.chunk_log2;
  return {begin, entry.items - begin < most ? entry.items - begin : most};
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

// The hot loop. All blocks of an entry share the high half of their number.
template <class Group, int kUnroll>
FASTINIT_FN void run(const Entry& entry, const typename Group::Constants& c, uint32_t number) {
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
      Group::sixteen_bytes(block + u * kThreads * Group::kBlocks, p, c, out);
      store16_bytes(to + u * kThreads * 16, out);
    }
    block += kUnroll * kThreads * Group::kBlocks;
    to += kUnroll * kThreads * 16;
  }
  if constexpr (kUnroll > 1) {
#pragma unroll 1
    for (; left > 0; left -= kThreads) {
      U out[4];
      Group::sixteen_bytes(block, p, c, out);
      store16_bytes(to, out);
      block += kThreads * Group::kBlocks;
      to += kThreads * 16;
    }
  }
}

// Rows of 16 bytes: the same, a thread's place going on by whole rows and a rest.
template <class Group>
FASTINIT_FN void box(const Entry& entry, const Layout& layout, const typename Group::Constants& c, uint32_t number) {
  const Chunk chunk = chunk_of(entry, number);
  const Philox p = philox_prepare(entry.seed, entry.stream, static_cast<uint32_t>(entry.first >> 32));
  const int64_t row_bytes = layout.dims[0].stride;
  const U row_blocks = static_cast<uint32_t>(layout.dims[0].logical_stride);
  const uint32_t per_row = static_cast<uint32_t>(layout.per_row);
  uint64_t row, place;
  divide(chunk.begin + threadIdx.x, layout.per_row, row, place);
  uint32_t column = static_cast<uint32_t>(place);
  U block = static_cast<uint32_t>(entry.first) + static_cast<uint32_t>(row) * row_blocks + column * Group::kBlocks;
  unsigned char* to = entry.data + static_cast<int64_t>(row) * row_bytes + static_cast<int64_t>(place) * 16;
  const uint32_t rows = kThreads / per_row, rest = kThreads % per_row;
  const U step_blocks = rows * row_blocks + rest * Group::kBlocks, turn_blocks = row_blocks - per_row * Group::kBlocks;
  const int64_t step_bytes = static_cast<int64_t>(rows) * row_bytes + static_cast<int64_t>(rest) * 16;
  const int64_t turn_bytes = row_bytes - static_cast<int64_t>(layout.per_row) * 16;
#pragma unroll 1
  for (int32_t left = static_cast<int32_t>(chunk.count) - static_cast<int32_t>(threadIdx.x); left > 0;
       left -= kThreads) {
    U out[4];
    Group::sixteen_bytes(block, p, c, out);
    store16_bytes(to, out);
    column += rest;
    block += step_blocks;
    to += step_bytes;
    if (column >= per_row) {
      column -= per_row;
      block += turn_blocks;
      to += turn_bytes;
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
    row.index += at * static_cast<uint64_t>(dims[d].logical_stride);
    offset += static_cast<int64_t>(at) * dims[d].stride;
  }
  row.to = entry.data + offset * entry.item_size;
  return row;
}

FASTINIT_FN DType dtype_of(const Entry& entry) { return static_cast<DType>(entry.dtype); }

FASTINIT_FN U round_to(DType dtype, U x) {
  return with_format(dtype, [&](auto format) { return format.round(x); });
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
template <class Dist>
struct Values32 {
  using Constants = typename Dist::Constants;
  static constexpr int kElements = 4;
  FASTINIT_FN void values(const U w[4], const Entry& entry, const Step* program, const Constants& c, uint64_t out[4]) {
    U e[4];
    Dist::values(w, c, e);
    run_steps(program, entry.steps, e);
    for (int j = 0; j < 4; ++j) out[j] = round_to(dtype_of(entry), e[j]);
  }
};
template <class Dist>
struct Values64 {
  using Constants = typename Dist::Constants;
  static constexpr int kElements = 2;
  FASTINIT_FN void values(const U w[4], const Entry& entry, const Step* program, const Constants& c, uint64_t out[2]) {
    double e[2];
    Dist::values(w, c, e);
    run_steps64(program, entry.steps, e);
    for (int j = 0; j < 2; ++j) out[j] = bits64(e[j]);
  }
};

// Any layout: an item is one block of the generator in one row, of which it stores the elements inside the row.
template <class Values>
FASTINIT_FN void rows(const Entry& entry, const Layout& layout, const typename Values::Constants& c, uint32_t number,
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
    Values::values(w, entry, program, c, e);
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
                        row.index + row.rest * static_cast<uint64_t>(last.logical_stride));
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
FASTINIT_FN void sparse(const Entry& entry, const Layout& layout, const Sparse& c,
                        const typename Values::Constants& normal, uint32_t number) {
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
      Values::values(w, entry, nullptr, normal, e);
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

template <class Group, int kUnroll, class Values>
FASTINIT_FN void any_path(const Entry& entry, const Layout& layout, const typename Values::Constants& c,
                          uint32_t number) {
  if (entry.path == Path::run) return run<Group, kUnroll>(entry, c, number);
  if (entry.path == Path::box) return box<Group>(entry, layout, c, number);
  rows<Values>(entry, layout, c, number);
}

// kUnroll: how many times 16 bytes a thread writes per turn of the hot loop, to spread the loop's own instructions.
template <class Dist, int kUnroll>
FASTINIT_FN void any_dtype(const Entry& entry, const Layout& layout, const typename Dist::Constants& c,
                           uint32_t number) {
  if (entry.path == Path::rows) return rows<Values32<Dist>>(entry, layout, c, number);
  with_format(dtype_of(entry), [&](auto format) {
    using Group = Group32<Dist, decltype(format)>;
    if (entry.path == Path::box) return box<Group>(entry, layout, c, number);
    run<Group, (kUnroll + Group::kBlocks - 1) / Group::kBlocks>(entry, c, number);
  });
}

template <class Constants>
FASTINIT_FN Constants as(const uint64_t* constants) {
  return *reinterpret_cast<const Constants*>(constants);
}

FASTINIT_FN void fill_chunk(const uint64_t* words) {
  uint32_t low = 0, high = static_cast<uint32_t>(words[0]) - 1;
  while (low < high) {
    const uint32_t middle = (low + high + 1) / 2;
    if (static_cast<uint32_t>(words[1 + middle]) <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const uint64_t index = words[1 + low];
  const uint32_t number = blockIdx.x - static_cast<uint32_t>(index);
  const uint64_t* at = words + (index >> 32);
  const Entry& entry = *reinterpret_cast<const Entry*>(at);
  const Layout& layout = *reinterpret_cast<const Layout*>(at + kEntryWords);
  const uint64_t* constants = at + kEntryWords + layout_words(entry.dims) + program_words(entry.steps);
  const bool f64 = dtype_of(entry) == DType::f64;
  switch (static_cast<Kind>(entry.kind)) {
    case Kind::bits:
      if (entry.path == Path::run) return run<Group32<BitsDist, F32>, 4>(entry, {}, number);
      if (entry.path == Path::box) return box<Group32<BitsDist, F32>>(entry, layout, {}, number);
      return rows<Values32<BitsDist>>(entry, layout, {}, number, constants[0]);
    case Kind::uniform:
      if (f64) {
        const Uniform<double> c = as<Uniform<double>>(constants);
        return any_path<Group64<UniformDist64>, 2, Values64<UniformDist64>>(entry, layout, c, number);
      }
      return any_dtype<UniformDist, 4>(entry, layout, as<Uniform<float>>(constants), number);
    case Kind::normal:
      if (f64) {
        const Normal<double> c = as<Normal<double>>(constants);
        return any_path<Group64<NormalDist64>, 1, Values64<NormalDist64>>(entry, layout, c, number);
      }
      return any_dtype<NormalDist, 4>(entry, layout, as<Normal<float>>(constants), number);
    case Kind::truncated_normal: {
      using Block64 = Values64<TruncatedNormalDist64>;
      if (f64) {
        TruncatedNormal<double> c = as<TruncatedNormal<double>>(constants);
        if (c.form != Form::near) return rows<Block64>(entry, layout, c, number);
        c.form = Form::near;  // so that the paths below have no code for the others
        return any_path<Group64<TruncatedNormalDist64>, 1, Block64>(entry, layout, c, number);
      }
      TruncatedNormal<float> c = as<TruncatedNormal<float>>(constants);
      if (c.form != Form::near) return rows<Values32<TruncatedNormalDist>>(entry, layout, c, number);
      c.form = Form::near;
      if (entry.plain && entry.path == Path::run) {
        return any_dtype<PlainTruncatedNormalDist, 4>(entry, layout, c, number);
      }
      return any_dtype<TruncatedNormalDist, 4>(entry, layout, c, number);
    }
    case Kind::mixture: {
      const Mixture* const c = reinterpret_cast<const Mixture*>(constants);
      if (f64) return any_path<Group64<MixtureDist64>, 1, Values64<MixtureDist64>>(entry, layout, c, number);
      // In the hot loop normals would take registers, and so threads, from all fills.
      if (c->normals) return rows<Values32<MixtureDist<true>>>(entry, layout, c, number);
      return any_dtype<MixtureDist<false>, 1>(entry, layout, c, number);
    }
    case Kind::sparse: {
      const Sparse& c = *reinterpret_cast<const Sparse*>(constants);
      if (f64) return sparse<Values64<NormalDist64>>(entry, layout, c, c.normal_f64, number);
      return sparse<Values32<NormalDist>>(entry, layout, c, c.normal_f32, number);
    }
    default:
      if (entry.path == Path::run) return run_constant(entry, constants, number);
      return elements(entry, layout, constants, number);
  }
}

template <int kWords>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) fill_table(const __grid_constant__ Table<kWords> table) {
  fill_chunk(table.words);
}

}  // namespace gpu

}  // namespace fastinit
