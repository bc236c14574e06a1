// For lower.cpp: the components of a mixture, from probabilities and parameters to shares of the words and constants.
#pragma once
#include <stdint.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "fill.h"
#include "formats.h"
#include "lower.h"

namespace fastinit {

// `rows`: kind, probability and two parameters of each component. Null if there is no such mixture.
template <class T>
const Mixture* make_mixture(DType dtype, const std::vector<double>& rows, Owned& owned) {
  double total = 0.0, before = 0.0;
  for (size_t i = 0; i + 3 < rows.size(); i += 4) {
    if (!(rows[i + 1] >= 0.0)) return nullptr;
    total += rows[i + 1];
  }
  if (rows.empty() || rows.size() % 4 != 0 || rows.size() > 4 * kMaxComponents || !(total > 0.0 && total < kInf)) {
    return nullptr;
  }
  std::vector<Component<T>> components;
  Mixture head{0, 0};
  for (size_t i = 0; i < rows.size(); i += 4) {
    const auto word = [&] { return static_cast<int64_t>(std::floor(before / total * 0x1p31 + 0.5)); };
    const int64_t first = word();
    before += rows[i + 1];
    const int64_t count = word() - first;
    if (count == 0) continue;
    Component<T> c{};
    c.first = static_cast<uint32_t>(first);
    c.last = static_cast<uint32_t>(count - 1);
    const double unit = 1.0 / static_cast<double>(count) * (sizeof(T) == 4 ? 1.0 : 0x1p-31);
    const double a = rows[i + 2], b = rows[i + 3];
    if (rows[i] == static_cast<double>(Kind::normal)) {
      head.normals = 1;
      c.unit = static_cast<T>(unit);
      c.scale = static_cast<T>(b);
      c.start = static_cast<T>(a);
      c.hi = static_cast<T>(kInf);
    } else {
      const bool uniform = rows[i] == static_cast<double>(Kind::uniform);
      if (!uniform && rows[i] != static_cast<double>(Kind::constant)) return nullptr;
      const Bounds bounds = uniform ? bounds_in(dtype, a, b, a != b) : Bounds{true, 0.0, 0.0};
      const double step = bounds.empty ? std::copysign(0.0, a) : (b - a) * unit;  // -0 alone keeps a start of -0
      c.scale = static_cast<T>(step);
      c.start = static_cast<T>(a + 0.5 * step);
      if (!bounds.empty && c.start < static_cast<T>(bounds.lo)) c.start = static_cast<T>(bounds.lo);
      c.hi = bounds.empty ? c.start : static_cast<T>(bounds.hi);
      if (c.hi == c.start) c.hi = c.start;  // of zeros the sign
    }
    components.push_back(c);
  }
  head.count = static_cast<int32_t>(components.size());
  const size_t bytes = components.size() * sizeof(Component<T>);
  owned.emplace_back(new uint64_t[(sizeof(head) + bytes + 7) / 8]);
  Mixture* const made = reinterpret_cast<Mixture*>(owned.back().get());
  *made = head;
  std::memcpy(made + 1, components.data(), bytes);
  return made;
}

}  // namespace fastinit
