// Threads and the choice of instruction set.
#include "cpu.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
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

// Pieces are cut so that each thread has several, within these bounds (multiples of every instruction set's tile).
constexpr int64_t kPieceElements = 1 << 16, kLeastPieceElements = 1 << 12;
constexpr int64_t kColumns = 128;
// Below this many elements a batch is not worth waking a thread for.
constexpr int64_t kThreadElements = 1 << 16;

std::vector<Piece> pieces(const std::vector<Fill>& fills, int threads, int64_t elements) {
  int64_t piece = elements / (8 * threads) / kLeastPieceElements * kLeastPieceElements;
  if (piece < kLeastPieceElements) piece = kLeastPieceElements;
  if (piece > kPieceElements) piece = kPieceElements;
  std::vector<Piece> all;
  all.reserve(fills.size());
  for (const Fill& fill : fills) {
    const int64_t n = fill.numel();
    // A sparse fill is cut by columns, each of which is a scan.
    const bool columns = fill.kind == Kind::sparse;
    const int64_t length = columns ? fill.sizes[1] : n;
    int64_t step = piece;
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

// Threads that are there from one call to the next: to wake one takes a few microseconds, to start one tens, and on a
// busy machine a new one may wait for milliseconds until it first runs, which the call would wait for too.
class Helpers {
 public:
  // Runs `work` here, and in up to `count` other threads at the same time. Waits for those that began, not for those
  // that have not yet when the work is done.
  static void serve(int count, const std::function<void()>& work) {
    if (count < 1) return work();
    Helpers& all = here();
    Job job{&work, count, 0};
    {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      all.jobs_.push_back(&job);
      all.wanted_ += count;
      all.grow();
    }
    for (int i = 0; i < count; ++i) all.wake_.notify_one();
    work();
    std::unique_lock<std::mutex> lock(all.mutex_);
    if (job.wanted > 0) {
      all.wanted_ -= job.wanted;
      all.jobs_.erase(std::find(all.jobs_.begin(), all.jobs_.end(), &job));
    }
    all.done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  struct Job {
    const std::function<void()>* work;
    int wanted, running;  // threads that it could still use; that are at it
  };

  // Those of this process: a child of fork() has none of its parent's threads, and may find its locks held. They are
  // never taken down, since they may be waiting when the process ends.
  static Helpers& here() {
    static std::atomic<Helpers*> current{nullptr};
    Helpers* found = current.load();
    if (found == nullptr || found->process_ != getpid()) {
      Helpers* const made = new Helpers;
      if (current.compare_exchange_strong(found, made)) return *made;
      delete made;  // another thread was first
    }
    return *found;
  }

  // As many threads as are wanted now. If no more can be had, those that there are do it all.
  void grow() {
    while (threads_ - busy_ < wanted_) {
      try {
        std::thread([this] { loop(); }).detach();
      } catch (const std::system_error&) {
        return;
      }
      ++threads_;
    }
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      --wanted_;
      if (--job.wanted == 0) jobs_.pop_front();
      ++job.running;
      ++busy_;
      lock.unlock();
      (*job.work)();
      lock.lock();
      --busy_;
      if (--job.running == 0) done_.notify_all();
    }
  }

  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  int threads_ = 0, busy_ = 0, wanted_ = 0;
};

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
  const std::vector<Piece> work = pieces(fills, threads, elements);
  std::atomic<size_t> next{0};
  const int64_t useful = elements / kThreadElements + 1;
  int64_t helpers = (threads < useful ? threads : useful) - 1;
  if (helpers >= static_cast<int64_t>(work.size())) helpers = static_cast<int64_t>(work.size()) - 1;
  Helpers::serve(static_cast<int>(helpers), [&] {
    const DefaultFloatingPoint guard;
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < work.size();) {
      const Piece& p = work[i];
      (p.fill->kind == Kind::sparse ? kernels.sparse_columns : kernels.range)(*p.fill, p.begin, p.end);
    }
  });
}

}  // namespace fastinit
