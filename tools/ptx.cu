// Holds what the GPU's own instructions give (csrc/lanes/ptx.h) to the integer code and the IEEE operations that every
// backend has to agree with.
//
//   c++ -x c++ -std=c++17 -O3 -ffp-contract=off -mfma tools/ptx.cu -o ptx && ./ptx     # what the PTX ISA says of them
//   nvcc -std=c++17 -O3 -fmad=false -arch=native tools/ptx.cu -o ptx && ./ptx          # a GPU's
//
// Conversions: every float32 (or, with a number n after the program's name, n of them evenly spread, and the
// neighbourhood of every place where a conversion's rule or result changes). NaN, and for float8_e5m2 what rounds to
// infinity, must differ: csrc/cuda.cu keeps them from the conversion. The square root: as C++ every mantissa with
// either parity of the exponent from every starting value that the documented error of rsqrt.approx allows, 2^24 times
// 4 to 8 of them; on a GPU every float32 in [2^-60, 2^60] and both zeros. Status 1 if anything is not as it should be.
#include <stdio.h>
#include <stdlib.h>

#include <cmath>
#include <thread>
#include <vector>

#define FASTINIT_ISA gpu
#define FASTINIT_GPU
#include "../csrc/pack.h"

namespace fastinit {
namespace gpu {

struct Count {
  unsigned long long inputs, different, wrong;
  uint32_t example;
};

// Whether a fill may convert this float32 (csrc/pack.h).
template <class Format>
FASTINIT_FN bool allowed(U x) {
  const U magnitude = x & 0x7fffffffu;
  return magnitude <= 0x7f800000u &&
         !(Format::value(0x7cu) == 0x7f800000u && Format::kBytes == 1 && magnitude >= 0x47700000u);
}

template <class Format>
FASTINIT_FN void try_conversion(U x, Count& c) {
  constexpr U mask = (1u << (8 * Format::kBytes)) - 1u;
  const U other = 0x3fa5a5a5u;  // in the other half, which must not matter
  const U low = pack2<Format>(x, other), high = pack2<Format>(other, x);
  const U wanted = Format::round(x) & mask, beside = Format::round(other) & mask;
  const bool same =
      low == (wanted | beside << (8 * Format::kBytes)) && high == (beside | wanted << (8 * Format::kBytes));
  ++c.inputs;
  if (same) return;
  ++c.different;
  if (allowed<Format>(x)) {
    ++c.wrong;
    c.example = x;
  }
}

#ifdef __CUDACC__

template <class Format>
__global__ void conversions(uint32_t step, Count* total) {
  Count c{};
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x * step;
  for (uint64_t x = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * step; x >> 32 == 0; x += stride) {
    try_conversion<Format>(static_cast<U>(x), c);
  }
  atomicAdd(&total->inputs, c.inputs);
  atomicAdd(&total->different, c.different);
  atomicAdd(&total->wrong, c.wrong);
  if (c.wrong) total->example = c.example;
}

__global__ void roots(Count* total) {
  Count c{};
  const uint32_t first = 0x21800000u, last = 0x5d800000u;  // 2^-60, 2^60
  for (uint64_t x = first + blockIdx.x * blockDim.x + threadIdx.x; x <= last + 2; x += gridDim.x * blockDim.x) {
    const F a = from_bits(x <= last ? static_cast<U>(x) : x == last + 1 ? 0u : 0x80000000u);
    ++c.inputs;
    if (bits(sqrt(a)) == bits(__fsqrt_rn(a))) continue;
    ++c.wrong;
    c.example = bits(a);
  }
  atomicAdd(&total->inputs, c.inputs);
  atomicAdd(&total->wrong, c.wrong);
  if (c.wrong) total->example = c.example;
}

template <class Launch>
Count on_device(const Launch& launch) {
  Count *there, c{};
  cudaError_t error = cudaMalloc(&there, sizeof(c));
  if (error == cudaSuccess) error = cudaMemset(there, 0, sizeof(c));
  if (error == cudaSuccess) launch(there);
  if (error == cudaSuccess) error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaMemcpy(&c, there, sizeof(c), cudaMemcpyDeviceToHost);
  if (error == cudaSuccess) error = cudaFree(there);
  if (error != cudaSuccess) {
    fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
    exit(2);
  }
  return c;
}

template <class Format>
Count every_conversion(uint32_t step) {
  return on_device([&](Count* there) { conversions<Format><<<4096, 256>>>(step, there); });
}

Count every_root() {
  return on_device([](Count* there) { roots<<<4096, 256>>>(there); });
}

#else

// `part(n, count)` on as many threads as there are cores, added up.
template <class Part>
Count in_parallel(const Part& part) {
  const unsigned n = std::thread::hardware_concurrency() ? std::thread::hardware_concurrency() : 1;
  std::vector<Count> counts(n, Count{});
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < n; ++t) threads.emplace_back([&, t] { part(t, n, counts[t]); });
  for (auto& thread : threads) thread.join();
  Count sum{};
  for (const Count& c : counts) {
    sum.inputs += c.inputs;
    sum.different += c.different;
    sum.wrong += c.wrong;
    if (c.wrong) sum.example = c.example;
  }
  return sum;
}

// Around every value of the format, every midpoint between two, and float32's own edges.
template <class Format>
void edges(Count& c) {
  const auto around = [&](U x) {
    for (U d = 0; d < 5; ++d) {
      try_conversion<Format>(x + d - 2u, c);
      try_conversion<Format>((x + d - 2u) ^ 0x80000000u, c);
    }
  };
  for (U n = 0; n < 1u << (8 * Format::kBytes - 1); ++n) {
    const double here = from_bits(Format::value(n)), next = from_bits(Format::value(n + 1));
    around(Format::value(n));
    around(bits(static_cast<float>(0.5 * here + 0.5 * next)));
  }
  for (U exponent = 0; exponent < 256; ++exponent) around(exponent << 23);
}

template <class Format>
Count every_conversion(uint32_t step) {
  return in_parallel([&](unsigned t, unsigned n, Count& c) {
    if (t == 0) edges<Format>(c);
    for (uint64_t x = static_cast<uint64_t>(t) * step; x >> 32 == 0; x += static_cast<uint64_t>(n) * step) {
      try_conversion<Format>(static_cast<U>(x), c);
    }
  });
}

Count every_root() {
  return in_parallel([](unsigned t, unsigned n, Count& c) {
    for (U x = 0x3f000000u + t; x < 0x40000000u; x += n) {  // [0.5, 2): every mantissa in two neighbouring binades
      const F a = from_bits(x), wanted = __builtin_sqrtf(a);
      const double exact = 1.0 / std::sqrt(static_cast<double>(a));
      const F nearest = static_cast<F>(exact);
      // 2^-22.4 of 1 / sqrt(a) is at most 3.04 last places; two last places are the more below 2^-1/2 or so.
      for (U d = 0; d < 9; ++d) {
        const F r = from_bits(bits(nearest) + d - 4u);
        const bool documented = std::fabs(r / exact - 1.0) <= 0x1.85p-23 || (d >= 2 && d <= 6);
        if (!documented) continue;
        ++c.inputs;
        if (bits(root_from(a, r)) == bits(wanted)) continue;
        ++c.wrong;
        c.example = x;
      }
    }
    if (t > 0) return;
    for (const U zero : {0u, 0x80000000u}) {
      ++c.inputs;
      if (bits(sqrt(from_bits(zero))) != zero) ++c.wrong;
    }
    for (U x = 0x21800000u; x <= 0x5d800000u; x += 4099) {  // and with r as it is modelled, through the whole range
      ++c.inputs;
      if (bits(sqrt(from_bits(x))) != bits(__builtin_sqrtf(from_bits(x)))) ++c.wrong;
    }
  });
}
#endif

bool report(const char* what, const Count& c) {
  printf("%-14s %10llu inputs, %llu wrong", what, c.inputs, c.wrong);
  if (c.wrong) printf(" (0x%08x is)", c.example);
  if (c.different > c.wrong) printf("; %llu differ where no fill comes", c.different - c.wrong);
  printf("\n");
  return c.wrong == 0;
}

}  // namespace gpu
}  // namespace fastinit

int main(int argc, char** argv) {
  using namespace fastinit::gpu;
  const unsigned long long samples = argc > 1 ? strtoull(argv[1], nullptr, 10) : 1ull << 32;
  if (samples < 1 || samples > 1ull << 32) {
    fprintf(stderr, "%s takes a number of float32 values to try, at most 2^32\n", argv[0]);
    return 2;
  }
  const auto step = static_cast<uint32_t>((1ull << 32) / samples);
  bool right = report("bfloat16", every_conversion<BF16>(step));
  right &= report("float16", every_conversion<F16>(step));
  right &= report("float8_e4m3fn", every_conversion<E4M3>(step));
  right &= report("float8_e5m2", every_conversion<E5M2>(step));
  right &= report("sqrt", every_root());
  return right ? 0 : 1;
}
