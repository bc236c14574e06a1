// The floating-point mode of whoever computes a fill or its constants.
#pragma once
#include <stdint.h>

namespace fastinit {

// A thread computes in the IEEE default: round to nearest, subnormals kept, whatever torch.set_flush_denormal says.
class DefaultFloatingPoint {
 public:
#if defined(__x86_64__)
  DefaultFloatingPoint() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
  ~DefaultFloatingPoint() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  // Not GCC's built-in functions, which clang lacks.
  DefaultFloatingPoint() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_) : : "memory");
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
  }
  ~DefaultFloatingPoint() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
  uint64_t saved_;
#endif
};

}  // namespace fastinit
