// From fills to launches. A launch serves a whole table of fills, which travels as the kernel's argument: nothing to
// upload, no lifetime to keep, and a CUDA graph holds a copy. A thread block finds its fill by bisection and does one
// chunk of it (cuda_kernels.cuh).
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cuda.h"
#include "cuda_kernels.cuh"

namespace fastinit {
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

// `count` elements along the first of `fill`'s dimensions, from `from` on; the rest as it is.
Fill slice(Fill fill, int64_t from, int64_t count) {
  fill.data += from * fill.strides[0] * fill.item_size;
  fill.first += static_cast<uint64_t>(from * fill.logical_strides[0]);
  fill.sizes[0] = count;
  return fill;
}

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
      const double reach = c->unit > 0.0f ? 6.67 * std::fabs(static_cast<double>(c->scale)) : 0.0;
      const bool normal = c->unit > 0.0f;
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
    const auto& c = fill.constants;
    entry.scattered = (fill.dtype == DType::f64 ? c.truncated_f64.form : c.truncated_f32.form) != Form::near;
  } else if (fill.kind == Kind::mixture) {
    entry.scattered = fill.dtype != DType::f64 && fill.constants.mixture->normals;
  }
  if (fill.kind == Kind::uniform || fill.kind == Kind::normal || fill.kind == Kind::truncated_normal ||
      fill.kind == Kind::mixture) {
    entry.scattered = entry.scattered || !may_pack(fill);
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
  entry.chunk_log2 = chunk_log2(entry.items);
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
  const bool constant = fill.kind == Kind::constant;
  const Entry entry = entry_of(fill);
  const bool together = fill.dims == 1 && fill.strides[0] == 1 && (constant || fill.logical_strides[0] == 1);
  if (!together || entry.scattered || entry.steps > 0 || fill.kind == Kind::diagonals)
    return add_scattered(tables, fill);

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

std::string cuda_error(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (device < 0 || device >= count) return "no CUDA device " + std::to_string(device);
  const CurrentDevice guard(device);
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(gpu::fill_table));
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // nobody else shall find it
  return cudaGetErrorString(error);
}

}  // namespace fastinit
