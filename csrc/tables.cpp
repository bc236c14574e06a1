// Fills into tables: which part of a fill goes by which path, and in chunks of which size.
#include "tables.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace fastinit {
namespace gpu {
namespace {

// Entries gather until a table is full, which is then launched.
class Tables {
 public:
  Tables(const Launch& launch, uint64_t items) : chunk_log2(log2_of(items)), launch_(launch) { clear(); }

  // Of 16 bytes in a chunk of a run or a box: as many as leave some thousands of blocks to spread over the device if
  // the batch has so much, since a thread block begins with some two hundred instructions.
  const int8_t chunk_log2;
  static int8_t log2_of(uint64_t items) {
    int log2 = 10;
    while (log2 < 13 && (items >> log2) > 8192) ++log2;
    return static_cast<int8_t>(log2);
  }

  // An entry, with its steps and `bytes` of constants.
  void add(const Entry& entry, const Layout& layout, const Step* program, const void* constants, size_t bytes) {
    const int place = layout_words(entry.dims), steps = program_words(entry.steps);
    const int words = kEntryWords + place + steps + static_cast<int>((bytes + 7) / 8);
    const uint64_t chunks = ((entry.items - 1) >> entry.chunk_log2) + 1;
    if (1 + count_ + 1 + words > end_ || chunks_ + chunks > kMaxChunks) launch();
    if (chunks > kMaxChunks) throw std::runtime_error("CUDA: a fill is too large for one launch");
    end_ -= words;
    uint64_t* at = table_.words + end_;
    std::memcpy(at, &entry, sizeof(entry));
    std::memcpy(at + kEntryWords, &layout, 8 * static_cast<size_t>(place));
    std::memcpy(at + kEntryWords + place, program, 8 * static_cast<size_t>(steps));
    std::memcpy(at + kEntryWords + place + steps, constants, bytes);
    table_.words[1 + count_++] = static_cast<uint64_t>(end_) << 32 | chunks_;
    chunks_ += chunks;
  }

  void launch() {
    if (count_ == 0) return;
    uint64_t* const words = table_.words;
    words[0] = static_cast<uint64_t>(count_);
    const int entries = kTableWords - end_;
    if (1 + count_ + entries > kSmallTableWords) {
      launch_(words, kTableWords, static_cast<uint32_t>(chunks_));
    } else {
      constexpr int kDown = kTableWords - kSmallTableWords;
      std::memmove(words + end_ - kDown, words + end_, 8 * static_cast<size_t>(entries));
      for (int i = 1; i <= count_; ++i) words[i] -= uint64_t{kDown} << 32;
      launch_(words, kSmallTableWords, static_cast<uint32_t>(chunks_));
    }
    clear();
  }

 private:
  static constexpr uint64_t kMaxChunks = 0x7fffffff;

  void clear() {
    count_ = 0;
    end_ = kTableWords;
    chunks_ = 0;
  }

  const Launch& launch_;
  Table<kTableWords> table_;
  int count_, end_;
  uint64_t chunks_;
};

size_t constants_of(const Fill& fill, const void*& at) {
  const bool f64 = fill.dtype == DType::f64;
  at = fill.kind == Kind::bits ? static_cast<const void*>(&fill.first_block) : &fill.constants;
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
    case Kind::mixture: {
      const Mixture* const c = fill.constants.mixture;
      at = c;
      return sizeof(*c) + static_cast<size_t>(c->count) * (f64 ? sizeof(Component<double>) : sizeof(Component<float>));
    }
    default:
      return 0;
  }
}

bool patterned(const Fill& fill) { return fill.kind == Kind::constant || fill.kind == Kind::diagonals; }

// `count` elements along one of `fill`'s dimensions, from `from` on; the rest as it is.
Fill slice(Fill fill, int d, int64_t from, int64_t count) {
  fill.data += from * fill.strides[d] * fill.item_size;
  fill.first += static_cast<uint64_t>(from * fill.logical_strides[d]);
  fill.sizes[d] = count;
  return fill;
}

// The elements of a block, and of 16 bytes; the blocks of 16 bytes; the block of the first element.
int64_t block_elements(const Fill& fill) { return fill.dtype == DType::f64 ? 2 : 4; }
int64_t elements_of_16(const Fill& fill) { return 16 / fill.item_size; }
int64_t blocks_of_16(const Fill& fill) { return elements_of_16(fill) / block_elements(fill); }
uint64_t block_of(const Fill& fill) {
  return fill.first_block + fill.first / static_cast<uint64_t>(block_elements(fill));
}
// Blocks from there on that share the high half of their number.
uint64_t blocks_left(const Fill& fill) { return (uint64_t{1} << 32) - static_cast<uint32_t>(block_of(fill)); }

// Whether the GPU's own conversions round this fill's values as csrc/pack.h asks: no NaN, and in float8_e5m2 nothing
// that rounds to infinity.
bool may_pack(const Fill& fill) {
  if (fill.item_size > 2) return true;
  double lo, hi;  // what the values lie between
  if (fill.kind == Kind::uniform) {
    lo = fill.constants.uniform_f32.lo;
    hi = fill.constants.uniform_f32.hi;
  } else if (fill.kind == Kind::truncated_normal) {
    lo = fill.constants.truncated_f32.lo;
    hi = fill.constants.truncated_f32.hi;
  } else if (fill.kind == Kind::mixture) {
    lo = INFINITY;
    hi = -INFINITY;
    const auto* c = reinterpret_cast<const Component<float>*>(fill.constants.mixture + 1);
    for (int32_t i = 0; i < fill.constants.mixture->count; ++i, ++c) {
      const bool normal = c->unit > 0.0f;
      const double reach = normal ? 6.67 * std::fabs(static_cast<double>(c->scale)) : 0.0;
      if (!std::isfinite(c->scale) || !std::isfinite(c->start)) return false;
      lo = std::fmin(lo, c->start - reach);
      hi = std::fmax(hi, normal ? c->start + reach : c->hi);
    }
  } else {
    const Normal<float>& c = fill.constants.normal_f32;
    if (!std::isfinite(c.mean) || !std::isfinite(c.std)) return false;  // 0 * infinity, infinity - infinity
    hi = 6.67 * std::fabs(static_cast<double>(c.std));                  // the radius reaches sqrt(64 log 2)
    lo = c.mean - hi;
    hi = c.mean + hi;
  }
  if (!(lo <= hi)) return false;
  return fill.dtype != DType::e5m2 || (lo > -61440.0 && hi < 61440.0);  // halfway to 65536, which it has not
}

// Whether no word takes the tail of a near truncated normal, and values need not be placed. The tail begins where
// -2 log(4 p (1 - p)) > 10 (docs/stream.md, section 7), where p (1 - p) is below exp(-5) / 4. The least p of a side is
// its base: step and t are not negative, and p is at most 1/2. The margin is a thousand times what rounding and the
// logarithm's polynomial can do.
bool is_plain(const Fill& fill) {
  if (fill.kind != Kind::truncated_normal || fill.dtype == DType::f64) return false;
  const TruncatedNormal<float>& c = fill.constants.truncated_f32;
  if (c.form != Form::near || c.unit != 1.0f || c.anchor != 0.0f || !std::signbit(c.anchor)) return false;
  const double least = c.base_lower < c.base_upper ? c.base_lower : c.base_upper;
  return 4.0 * least * (1.0 - least) > 0.0068;
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
  entry.plain = is_plain(fill);
  return entry;
}

// What has no path for neighbours, whatever its layout.
bool alone(const Fill& fill) {
  if (fill.kind == Kind::diagonals || fill.steps > 0) return true;
  if (fill.kind == Kind::bits || fill.kind == Kind::constant) return false;
  if (!may_pack(fill)) return true;
  if (fill.kind == Kind::mixture) return fill.dtype != DType::f64 && fill.constants.mixture->normals;
  if (fill.kind != Kind::truncated_normal) return false;
  return (fill.dtype == DType::f64 ? fill.constants.truncated_f64.form : fill.constants.truncated_f32.form) !=
         Form::near;
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
    dims[n] = {fill.sizes[n], fill.strides[n], fill.logical_strides[n]};
    rows *= static_cast<uint64_t>(fill.sizes[n]);
  }
  // Along the last dimension elements share blocks if they are neighbours in the logical tensor.
  if (dims[n - 1].logical_stride != 1 && n <= kMaxDims && !patterned(fill)) dims[n++] = {1, 1, 1};
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
  entry.chunk_log2 = Tables::log2_of(entry.items);
  if (patterned(fill)) {
    uint64_t constants[2 + sizeof(Diagonals) / 8] = {fill.pattern[0], fill.pattern[1]};
    std::memcpy(constants + 2, &fill.constants.diagonals, sizeof(Diagonals));
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
  entry.chunk_log2 = tables.chunk_log2;
  if (fill.kind == Kind::constant) {
    unsigned char pattern[16];
    for (int i = 0; i < 16; i += fill.item_size) {
      std::memcpy(pattern + i, fill.pattern, static_cast<size_t>(fill.item_size));
    }
    tables.add(entry, none, fill.program, pattern, 16);
    return;
  }
  entry.first = block_of(fill);
  const void* constants;
  const size_t bytes = constants_of(fill, constants);
  tables.add(entry, none, fill.program, constants, bytes);
}

// Neighbours that begin 16 bytes: as runs, in each of which the high half of a block's number does not change.
void add_runs(Tables& tables, const Fill& fill) {
  const int64_t per = elements_of_16(fill), n = fill.sizes[0];
  for (int64_t at = 0; at < n;) {
    const Fill rest = slice(fill, 0, at, n - at);
    uint64_t count = static_cast<uint64_t>((n - at) / per);
    if (fill.kind != Kind::constant) {
      const uint64_t most = blocks_left(rest) / static_cast<uint64_t>(blocks_of_16(fill));
      if (count > most) count = most;
    }
    add_run(tables, rest, count);
    at += static_cast<int64_t>(count) * per;
  }
}

// Rows of such, likewise as boxes. A row that itself crosses a change of the high half goes as runs.
void add_boxes(Tables& tables, const Fill& fill) {
  const uint64_t per_row = static_cast<uint64_t>(fill.sizes[1] / elements_of_16(fill));
  const uint64_t blocks = per_row * static_cast<uint64_t>(blocks_of_16(fill));
  const uint64_t step = static_cast<uint64_t>(fill.logical_strides[0] / block_elements(fill));
  for (int64_t row = 0; row < fill.sizes[0];) {
    int64_t count = fill.sizes[0] - row;
    const Fill rest = slice(fill, 0, row, count);
    const uint64_t left = blocks_left(rest);
    if (blocks > left || per_row >> 31) {
      Fill one = slice(rest, 0, 0, 1);
      one.dims = 1;
      one.sizes[0] = one.sizes[1];
      one.strides[0] = one.logical_strides[0] = 1;
      add_runs(tables, one);
      ++row;
      continue;
    }
    const uint64_t most = step > 0 ? (left - blocks) / step + 1 : left;
    if (static_cast<uint64_t>(count) > most) count = static_cast<int64_t>(most);
    Entry entry = entry_of(fill);
    entry.data = rest.data;
    entry.path = Path::box;
    entry.dims = 1;
    entry.items = static_cast<uint64_t>(count) * per_row;
    entry.chunk_log2 = tables.chunk_log2;
    entry.first = block_of(rest);
    Layout layout;
    layout.per_row = per_row;
    layout.dims[0] = {count, fill.strides[0] * fill.item_size, static_cast<int64_t>(step)};
    const void* constants;
    const size_t bytes = constants_of(rest, constants);
    tables.add(entry, layout, fill.program, constants, bytes);
    row += count;
  }
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
  for (int d = 0; d < 2; ++d) layout.dims[d] = {fill.sizes[d], fill.strides[d], fill.logical_strides[d]};
  entry.path = Path::sparse;
  entry.dims = 2;
  layout.per_row = (rows + parts - 1) / parts;
  entry.items = (rows + layout.per_row - 1) / layout.per_row * columns;
  entry.chunk_log2 = 7;
  tables.add(entry, layout, fill.program, &fill.constants.sparse, sizeof(Sparse));
}

void add(Tables& tables, Fill fill) {
  if (fill.numel() == 0) return;
  if (reinterpret_cast<uintptr_t>(fill.data) % static_cast<uintptr_t>(fill.item_size == 16 ? 8 : fill.item_size)) {
    throw std::runtime_error("CUDA: a tensor's elements are not aligned to their size");
  }
  if (fill.kind == Kind::sparse) return add_sparse(tables, fill);
  // Along the last dimension: a ragged head, then 16 bytes at a time, then a ragged tail. Each 16 bytes are whole
  // blocks.
  const bool constant = fill.kind == Kind::constant;
  const int last = fill.dims - 1;
  const int64_t per = elements_of_16(fill);
  if (alone(fill) || last > (constant ? 0 : 1) || fill.strides[last] != 1) return add_scattered(tables, fill);
  if (!constant && fill.logical_strides[last] != 1) return add_scattered(tables, fill);
  // Rows begin alike, and not so far apart that few share the high half of a block's number.
  if (last == 1 && (fill.strides[0] % per || fill.logical_strides[0] % per || fill.logical_strides[0] >> 28))
    return add_scattered(tables, fill);
  const uint64_t from =
      constant ? reinterpret_cast<uintptr_t>(fill.data) / static_cast<uint64_t>(fill.item_size) : fill.first;
  const int64_t n = fill.sizes[last];
  int64_t head = static_cast<int64_t>((0 - from) % static_cast<uint64_t>(per));
  if (head > n) head = n;
  if (reinterpret_cast<uintptr_t>(fill.data + head * fill.item_size) % 16) return add_scattered(tables, fill);
  const int64_t body = (n - head) / per * per;
  add_scattered(tables, slice(fill, last, 0, head));
  if (body > 0) (last == 0 ? add_runs : add_boxes)(tables, slice(fill, last, head, body));
  add_scattered(tables, slice(fill, last, head + body, n - head - body));
}

}  // namespace

void tabulate(const std::vector<Fill>& fills, const Launch& launch) {
  uint64_t items = 0;
  for (const Fill& fill : fills) items += static_cast<uint64_t>(fill.numel() * fill.item_size) / 16;
  Tables tables(launch, items);
  for (const Fill& fill : fills) add(tables, fill);
  tables.launch();
}

}  // namespace gpu
}  // namespace fastinit
