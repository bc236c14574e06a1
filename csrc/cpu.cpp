// Threads and the choice of instruction set.
#include "cpu.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "floating_point.h"

namespace fastinit {

#define FASTINIT_DECLARE(isa)   \
  namespace isa {               \
  extern const Kernels kernels; \
  }
FASTINIT_INSTRUCTION_SETS(FASTINIT_DECLARE)
#undef FASTINIT_DECLARE

namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
};

// What this machine can run, best first.
const std::vector<Choice> choices = [] {
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
}();

std::atomic<const Choice*> chosen{&choices.front()};

// What one thread does at a time: the fills [first, last), of one alone the elements (of a sparse one, whose columns
// are scans, the columns) from `begin` to `end`.
struct Piece {
  const Fill *first, *last;
  int64_t begin, end;
};

// Pieces are cut so that each thread has several, within these bounds (multiples of every instruction set's tile).
constexpr int64_t kPieceElements = 1 << 16, kLeastPieceElements = 1 << 12;
constexpr int64_t kPiecesForThread = 16;
constexpr int64_t kColumns = 128;
// What is larger than this pushes everything else out of the caches, itself included.
constexpr int64_t kNonTemporalFrom = 64 << 20;
// Smaller tensors lie in no huge page, or share one.
constexpr uintptr_t kHugePageFrom = 1 << 20;
// Below this many elements a batch is not worth waking a thread for.
constexpr int64_t kThreadElements = 1 << 16;

int64_t length_of(const Fill& fill) { return fill.kind == Kind::sparse ? fill.sizes[1] : fill.numel(); }

void run(const Kernels& kernels, const Fill& fill, int64_t begin, int64_t end) {
  (fill.kind == Kind::sparse ? kernels.sparse_columns : kernels.range)(fill, begin, end);
}

std::vector<Piece> pieces(const std::vector<Fill>& fills, int threads, int64_t elements) {
  const Fill *next = fills.data(), *const end = next + fills.size();
  if (threads == 1 && fills.size() != 1) return {{next, end, 0, 0}};
  int64_t piece = elements / (kPiecesForThread * threads) / kLeastPieceElements * kLeastPieceElements;
  if (piece < kLeastPieceElements) piece = kLeastPieceElements;
  if (piece > kPieceElements) piece = kPieceElements;
  std::vector<Piece> all;
  while (next != end) {
    const Fill& fill = *next++;
    const int64_t length = length_of(fill);
    if (length == 0) continue;
    int64_t step = threads == 1 ? length : piece;
    if (threads > 1 && fill.kind == Kind::sparse) {  // whole tiles in each row, and several for each thread
      step = length / (4 * threads) / kColumns * kColumns;
      if (step < kColumns) step = kColumns;
    }
    for (int64_t at = 0; at < length; at += step) {
      all.push_back({&fill, next, at, at + step < length ? at + step : length});
    }
    if (step < length) continue;
    for (int64_t together = fill.numel(); next != end; all.back().last = ++next) {  // small ones together
      together += next->numel();
      if (together > piece) break;
    }
  }
  return all;
}

}  // namespace

// What helpers run.
struct Shared {
  virtual ~Shared() = default;
  virtual void run() = 0;
  int wanted = 0, running = 0;  // helpers that it could still use; that are at it
};

// What the threads at a batch share.
struct Batch::Job : Shared {
  Job(std::vector<Fill> all, int threads, bool fresh) : kernels(*chosen.load()->kernels), fills(std::move(all)) {
    int64_t elements = 0, bytes = 0;
    for (const Fill& fill : fills) {
      elements += fill.numel();
      bytes += fill.numel() * fill.item_size;
    }
    // New pages are in the caches already: the system has just written zeros there.
    if (!fresh && bytes >= kNonTemporalFrom) {
      for (Fill& fill : fills) fill.non_temporal = true;
    }
    const int64_t useful = elements < kThreadElements ? 1 : elements / kThreadElements + 1;
    if (threads > useful) threads = static_cast<int>(useful);
    if (threads < 1) threads = 1;
    work = pieces(fills, threads, elements);
    const int most = static_cast<int>(work.size());
    wanted = (threads < most ? threads : most) - 1;
  }

  // Takes pieces until there are no more.
  void run() override {
    const DefaultFloatingPoint guard;
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < work.size();) {
      const Piece& p = work[i];
      for (const Fill* fill = p.first; fill != p.last; ++fill) {
        const int64_t end = p.last - p.first == 1 ? p.end : length_of(*fill);
        fastinit::run(kernels, *fill, p.begin, end);
      }
    }
  }

  const Kernels& kernels;
  std::vector<Fill> fills;
  std::vector<Piece> work;
  char apart[64];               // what follows is written, what lies above only read
  std::atomic<size_t> next{0};  // of the work
};

// A persistent worker pool: to wake a thread takes a few microseconds, to start one tens, and on a
// busy machine a new one may wait for milliseconds until it first runs, which the call would wait for too.
class Helpers {
 public:
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

  // Lets helpers run the job too, as many as it wants.
  void begin(Shared& job) {
    const int count = job.wanted;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(count);
      jobs_.push_back(&job);  // last: nothing fails after it
    }
    for (int i = 0; i < count; ++i) wake_.notify_one();
  }

  // Waits for those that are at it, not for those that have not begun: there is nothing left to do.
  void end(Shared& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (job.wanted > 0) jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  // Callers at the same time share the threads. If no more can be had, those that there are do it all.
  void grow(int count) {
    while (threads_ < count) {
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
      Shared& job = *jobs_.front();
      if (--job.wanted == 0) jobs_.pop_front();
      ++job.running;
      lock.unlock();
      job.run();
      lock.lock();
      if (--job.running == 0) done_.notify_all();
    }
  }

  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Shared*> jobs_;
  int threads_ = 0;
};

void ask_for_huge_pages(const std::vector<Fill>& fills) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const Fill& fill : fills) {
    if (fill.dims != 1 || fill.strides[0] != 1) continue;
    const uintptr_t first = reinterpret_cast<uintptr_t>(fill.data);
    const uintptr_t bytes = static_cast<uintptr_t>(fill.sizes[0]) * static_cast<uintptr_t>(fill.item_size);
    if (bytes < kHugePageFrom) continue;
    // Also the pages that it begins and ends in: so the mappings of neighbours stay one, which huge pages can span.
    const uintptr_t from = first / page * page, to = (first + bytes + page - 1) / page * page;
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // a wish: no error matters
#endif
  }
}

Batch::Batch(std::vector<Fill> fills, int threads, bool fresh) : job_(new Job(std::move(fills), threads, fresh)) {
  if (job_->wanted > 0) (helpers_ = &Helpers::here())->begin(*job_);
}

void Batch::finish() {
  if (!job_) return;
  job_->run();
  if (helpers_ != nullptr) helpers_->end(*job_);
  job_.reset();
}

Batch::~Batch() { finish(); }

void in_parallel(int threads, size_t count, const std::function<void(size_t)>& call) {
  struct Calls : Shared {
    Calls(size_t count, const std::function<void(size_t)>& call) : count(count), call(call) {}
    void run() override {
      const DefaultFloatingPoint guard;
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(i);
    }
    const size_t count;
    const std::function<void(size_t)>& call;
    std::atomic<size_t> next{0};
  } calls(count, call);
  calls.wanted = static_cast<int>(std::min(static_cast<size_t>(threads < 1 ? 1 : threads), count)) - 1;
  if (calls.wanted <= 0) return calls.run();
  Helpers& helpers = Helpers::here();
  helpers.begin(calls);
  calls.run();
  helpers.end(calls);
}

void fill_here(const std::vector<Fill>& fills) {
  const DefaultFloatingPoint guard;
  const Kernels& kernels = *chosen.load()->kernels;
  for (const Fill& fill : fills) run(kernels, fill, 0, length_of(fill));
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Choice& c : choices) names.push_back(c.name);
  return names;
}

std::string instruction_set() { return chosen.load()->name; }

void set_instruction_set(const std::string& name) {
  for (const Choice& c : choices) {
    if (name == c.name) {
      chosen = &c;
      return;
    }
  }
  throw std::invalid_argument("this machine has no instruction set '" + name + "'");
}

}  // namespace fastinit
