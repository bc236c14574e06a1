// The normal distribution in double, by our own arithmetic: libm differs between machines. For the host.
// Of <cmath> only what is exact is used: sqrt, floor, ldexp, fabs, ceil.
#pragma once
#include <cmath>

namespace fastinit {

// exp(x) for x <= 0.
inline double exp_negative(double x) {
  if (!(x > -745.0)) return 0.0;
  const double k = std::floor(x * 0x1.71547652b82fep+0 + 0.5);  // log2 e
  const double r = (x - k * 0x1.62e42fefa0000p-1) - k * 0x1.cf79abc9e3b39p-40;
  double sum = 1.0;
  for (int n = 17; n >= 1; --n) sum = 1.0 + r * sum / n;
  return std::ldexp(sum, static_cast<int>(k));
}

inline double density(double z) { return exp_negative(-0.5 * z * z) * 0x1.9884533d43651p-2; }  // 1 / sqrt(2 pi)

// Mills' ratio (1 - Phi(z)) / phi(z) for z >= 2, by Laplace's continued fraction.
inline double mills_ratio(double z) {
  double m = z;
  for (int n = 100; n >= 1; --n) m = z + n / m;
  return 1.0 / m;
}

inline double survival(double z);

// Phi(z) - 1/2 for z >= 0.
inline double central(double z) {
  if (z >= 2.0) return 0.5 - survival(z);
  double term = z, sum = z;
  for (int n = 3; n <= 121; n += 2) {
    term = term * (z * z) / n;
    sum = sum + term;
  }
  return density(z) * sum;
}

// 1 - Phi(z) for z >= 0.
inline double survival(double z) {
  if (z < 2.0) return 0.5 - central(z);
  return z < 40.0 ? density(z) * mills_ratio(z) : 0.0;
}

// 1 - Phi(z) and Phi(z) - 1/2 for any z.
inline double upper_tail(double z) { return z < 0.0 ? 0.5 + central(-z) : survival(z); }
inline double signed_central(double z) { return z < 0.0 ? -central(-z) : central(z); }

// The mass of [a, b], a <= b, without cancellation between the sides.
inline double mass(double a, double b) {
  if (a > 1.0) return survival(a) - survival(b);
  if (b < -1.0) return survival(-b) - survival(-a);
  return signed_central(b) - signed_central(a);
}

}  // namespace fastinit
