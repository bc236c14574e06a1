// Fills over a wire, for programs that have the kernels but no Python: the lists that `encode` of torch_fastinit/ops.py
// gives and the rows of tests/support/wire.py, into what csrc/lower.h takes.
#pragma once
#include <stdexcept>
#include <vector>

#include "../../csrc/lower.h"

namespace fastinit {

// Reads a list from its front.
template <class T>
class Reader {
 public:
  explicit Reader(const std::vector<T>& list) : at_(list.data()), end_(list.data() + list.size()) {}
  bool done() const { return at_ == end_; }
  T next() { return take(1)[0]; }
  std::vector<T> take(int64_t n) {
    if (n < 0 || n > end_ - at_) throw std::invalid_argument("a list is too short");
    at_ += n;
    return std::vector<T>(at_ - n, at_);
  }

 private:
  const T *at_, *end_;
};

// `tensors`: address, dtype, dimensions, sizes, strides of each.
inline std::vector<Fill> from_wire(const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe,
                                   const std::vector<double>& params, Owned& owned) {
  std::vector<Fill> fills;
  Reader<int64_t> layout(tensors), how(recipe);
  Reader<double> numbers(params);
  for (int32_t tensor = 0; !layout.done(); ++tensor) {
    Description d;
    d.tensor = tensor;
    d.address = layout.next();
    d.dtype = layout.next();
    const int64_t dims = layout.next();
    d.sizes = layout.take(dims);
    d.strides = layout.take(dims);
    d.kind = how.next();
    d.seed = d.words[0] = static_cast<uint64_t>(how.next());
    d.stream = d.words[1] = static_cast<uint64_t>(how.next());
    const int64_t count = how.next(), region = how.next(), steps = how.next();
    if (static_cast<Kind>(d.kind) == Kind::mixture) {
      d.components = numbers.take(count);
    } else {
      if (count > 4) throw std::invalid_argument("too many parameters");
      for (int64_t i = 0; i < count; ++i) d.params[i] = numbers.next();
    }
    if (static_cast<Kind>(d.kind) == Kind::sparse) {
      d.second = static_cast<uint64_t>(how.next());
    } else if (static_cast<Kind>(d.kind) == Kind::bits) {
      d.offset_low = static_cast<uint64_t>(how.next());
      d.offset_high = static_cast<uint64_t>(how.next());
    }
    d.has_region = region > 0;
    d.shape = how.take(region);
    d.offsets = how.take(region);
    if (steps > 0) d.drawn = how.next();
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t op = how.next(), dtype = how.next();
      d.steps.push_back({op, dtype, numbers.next()});
    }
    lower(d, fills, owned);
  }
  if (!how.done() || !numbers.done()) throw std::invalid_argument("a list is too long");
  return fills;
}

}  // namespace fastinit
