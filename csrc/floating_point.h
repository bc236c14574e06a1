// The floating-point mode of whoever computes a fill or its constants.
#pragma once

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
  DefaultFloatingPoint() : saved_(__builtin_aarch64_get_fpcr()) { __builtin_aarch64_set_fpcr(0); }
  ~DefaultFloatingPoint() { __builtin_aarch64_set_fpcr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace fastinit
