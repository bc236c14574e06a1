// Elements that no whole tile has: gathered until there are enough of them to fill the lanes. For the CPU.
#pragma once
#include <string.h>

#include "lane.h"
#include "philox.h"

namespace fastinit {
namespace FASTINIT_ISA {

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

// A few bytes, without a call: whole pieces, and what is left by a last one that overlaps.
FASTINIT_FN void copy(unsigned char* to, const unsigned char* from, int64_t bytes) {
  if (bytes >= 64) {
    const int64_t last = bytes - 64;
    for (int64_t at = 0; at < last; at += 64) memcpy(to + at, from + at, 64);
    memcpy(to + last, from + last, 64);
  } else if (bytes >= 32) {
    memcpy(to, from, 32);
    memcpy(to + bytes - 32, from + bytes - 32, 32);
  } else if (bytes >= 16) {
    memcpy(to, from, 16);
    memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else if (bytes >= 8) {
    memcpy(to, from, 8);
    memcpy(to + bytes - 8, from + bytes - 8, 8);
  } else {
    for (int64_t at = 0; at < bytes; ++at) to[at] = from[at];
  }
}

template <class T>
void scatter(unsigned char* to, int64_t stride, const unsigned char* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) memcpy(to + i * stride * int64_t{sizeof(T)}, from + i * sizeof(T), sizeof(T));
}

// The elements of `count` blocks of these numbers (their low halves), in order.
using Make = void (*)(const void* constants, const Philox&, const uint32_t* numbers, int count, unsigned char* to);

// Blocks of which not all elements are wanted, or that are no neighbours: short rows, and the ends of long ones. They
// wait until they fill the lanes, are made together, and their elements are copied to where they belong.
class Pending {
 public:
  // At most so many wait.
  static constexpr int kBlocks = kSideBySide * kLanes < 32 ? 32 : kSideBySide * kLanes;

  Pending(Make make, const void* constants, Stream& stream, int size)
      : make_(make), constants_(constants), stream_(stream), size_(size), shift_(size == 8 ? 1 : 2) {}

  // `count` consecutive logical elements from `index` on, to `to`, `stride` elements apart.
  void add(uint64_t index, int64_t count, unsigned char* to, int64_t stride) {
    while (count > 0) {
      const uint64_t block = stream_.first_block + (index >> shift_);
      const int64_t skip = static_cast<int64_t>(index & ((1u << shift_) - 1));
      if (count_ > 0 && block >> 32 != block_ >> 32) flush();
      block_ = block;
      int64_t blocks = (skip + count + (1 << shift_) - 1) >> shift_;
      if (blocks > kBlocks - count_) blocks = kBlocks - count_;
      const int64_t left = (int64_t{1} << 32) - static_cast<uint32_t>(block);  // of this high half
      if (blocks > left) blocks = left;
      for (int i = 0; i < blocks; i += kLanes) {
        put(numbers_ + count_ + i,
            FASTINIT_ISA::add(order8(), splat(static_cast<uint32_t>(block) + static_cast<uint32_t>(i))));
      }
      const int64_t room = (blocks << shift_) - skip, take = count < room ? count : room;
      copies_[copies_count_++] = {to, stride, (count_ << shift_) + skip, take};
      count_ += static_cast<int>(blocks);
      to += take * stride * size_;
      index += static_cast<uint64_t>(take);
      count -= take;
      if (count_ == kBlocks) flush();
    }
  }

  // Makes those that wait.
  void flush() {
    if (count_ == 0) return;
    make_(constants_, stream_.at(block_), numbers_, count_, part_);
    for (int i = 0; i < copies_count_; ++i) {
      const Copy& one = copies_[i];
      const unsigned char* from = part_ + one.from * size_;
      if (one.stride == 1) {
        copy(one.to, from, one.count * size_);
      } else if (size_ == 4) {
        scatter<uint32_t>(one.to, one.stride, from, one.count);
      } else if (size_ == 2) {
        scatter<uint16_t>(one.to, one.stride, from, one.count);
      } else if (size_ == 1) {
        scatter<uint8_t>(one.to, one.stride, from, one.count);
      } else {
        scatter<uint64_t>(one.to, one.stride, from, one.count);
      }
    }
    count_ = copies_count_ = 0;
  }

 private:
  struct Copy {
    unsigned char* to;
    int64_t stride, from, count;
  };

  const Make make_;
  const void* const constants_;
  Stream& stream_;
  const int size_, shift_;  // bytes of an element; a block has 2^shift_ elements
  int count_ = 0, copies_count_ = 0;
  uint64_t block_ = 0;  // the last one
  alignas(64) uint32_t numbers_[kBlocks + kLanes] = {};
  Copy copies_[kBlocks];
  alignas(64) unsigned char part_[kBlocks * 16];
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
