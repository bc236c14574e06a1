// Threads and the choice of instruction set.
#include "cpu.h"

#include <atomic>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "floating_point.h"

namespace fastinit {

#define FASTINIT_DECLARE(isa)   \
  namespace isa {               \
  extern const Kernels kernels; \
  }
FASTINIT_DECLARE(scalar)
#if defined(__x86_64__)
FASTINIT_DECLARE(avx2)
FASTINIT_DECLARE(avx512)
#elif defined(__aarch64__)
FASTINIT_DECLARE(neon)
#endif
#undef FASTINIT_DECLARE

namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
};

// What this machine can run, best first.
std::vector<Choice> choices() {
  std::vector<Choice> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    all.push_back({"avx512", &avx512::kernels});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back({"avx2", &avx2::kernels});
#elif defined(__aarch64__)
  all.push_back({"neon", &neon::kernels});  // every one has it
#endif
  all.push_back({"scalar", &scalar::kernels});
  return all;
}

std::atomic<const Kernels*> chosen{choices().front().kernels};

// A part of a fill that one thread does at a time.
struct Piece {
  const Fill* fill;
  int64_t begin, end;
};

// Small enough that two threads share a tensor of a few hundred thousand elements; the speed does not depend on it.
constexpr int64_t kPieceElements = 1 << 16;
constexpr int64_t kColumns = 128;
// Below this many elements a batch is not worth a thread of its own (starting one costs tens of microseconds).
constexpr int64_t kThreadElements = 1 << 16;

std::vector<Piece> pieces(const std::vector<Fill>& fills, int threads) {
  std::vector<Piece> all;
  all.reserve(fills.size());
  for (const Fill& fill : fills) {
    const int64_t n = fill.numel();
    // A sparse fill is cut by columns, each of which is a scan.
    const bool columns = fill.kind == Kind::sparse;
    const int64_t length = columns ? fill.sizes[1] : n;
    int64_t step = kPieceElements;
    if (columns) {  // wide enough for whole tiles in each row, and enough of them for every thread
      step = length / (4 * threads) / kColumns * kColumns;
      if (step < kColumns) step = kColumns;
    }
    if (n == 0) continue;
    for (int64_t at = 0; at < length; at += step) {
      all.push_back({&fill, at, at + step < length ? at + step : length});
    }
  }
  return all;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Choice& c : choices()) names.push_back(c.name);
  return names;
}

std::string instruction_set() {
  for (const Choice& c : choices()) {
    if (c.kernels == chosen.load()) return c.name;
  }
  return "";
}

void set_instruction_set(const std::string& name) {
  for (const Choice& c : choices()) {
    if (name == c.name) {
      chosen = c.kernels;
      return;
    }
  }
  throw std::invalid_argument("this machine has no instruction set '" + name + "'");
}

void fill_cpu(const std::vector<Fill>& fills, int threads) {
  const Kernels& kernels = *chosen.load();
  if (threads < 1) threads = 1;
  int64_t elements = 0;
  for (const Fill& fill : fills) elements += fill.numel();
  if (threads == 1 || elements < kThreadElements) {  // nothing to share out
    const DefaultFloatingPoint guard;
    for (const Fill& fill : fills) {
      const bool columns = fill.kind == Kind::sparse;
      if (fill.numel() > 0)
        (columns ? kernels.sparse_columns : kernels.range)(fill, 0, columns ? fill.sizes[1] : fill.numel());
    }
    return;
  }
  const std::vector<Piece> work = pieces(fills, threads);
  std::atomic<size_t> next{0};
  const auto serve = [&] {
    const DefaultFloatingPoint guard;
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < work.size();) {
      const Piece& p = work[i];
      (p.fill->kind == Kind::sparse ? kernels.sparse_columns : kernels.range)(*p.fill, p.begin, p.end);
    }
  };
  const int64_t useful = elements / kThreadElements + 1;
  int64_t helpers = (threads < useful ? threads : useful) - 1;
  if (helpers >= static_cast<int64_t>(work.size())) helpers = static_cast<int64_t>(work.size()) - 1;
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < helpers; ++i) {
    try {
      pool.emplace_back(serve);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that there are do it all
    }
  }
  serve();
  for (std::thread& t : pool) t.join();
}

}  // namespace fastinit
