#include "parallel.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace steepest::parallel {
namespace {

// About 64 Ki parameters of AdamW (28 bytes each): from here on letting go of the GIL pays.
constexpr std::ptrdiff_t kUnlockBytes = 2 << 20;
// What two threads must have to do: least where more follows at once, or a worker still spins, more where it must be
// woken, most beside other work, whose threads hold the cores.
constexpr std::ptrdiff_t kBriskBytes = 256 << 10, kSpinBytes = 2 << 20, kWakeBytes = 5 << 20, kAmidBytes = 10 << 20;
// A block must be worth taking, and small enough that nobody waits long for the last one.
constexpr std::ptrdiff_t kMinBlockBytes = 128 << 10, kMaxBlockBytes = 4 << 20;
constexpr int kBlocksPerThread = 8;
constexpr std::ptrdiff_t kMaxBlocks = 60000;  // their numbers have 16 bits

// A worker that takes longer to come to another core finds others at work there, and does not try again for a while.
constexpr auto kArrival = std::chrono::microseconds(500), kStay = std::chrono::microseconds(50'000);

// How long a worker stays awake after a region, and after a brisk one, one that soon follows it, or an announcement.
constexpr auto kSpin = std::chrono::microseconds(30), kBriskSpin = std::chrono::microseconds(200);

// How often the caller looks whether the others have done their last blocks before it lets other threads run.
constexpr int kPauses = 100;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// The core that this thread runs on, or -1.
inline int core() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to another core; it may come back. Whether there is one.
inline bool leave([[maybe_unused]] int core) {
#ifdef __linux__
  cpu_set_t all, others, found;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return false;
  others = all;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return false;
  // Unless somebody else has set it meanwhile
  const bool is_own = sched_getaffinity(0, sizeof found, &found) == 0 && CPU_EQUAL(&found, &others);
  return is_own && sched_setaffinity(0, sizeof all, &all) == 0;
#else
  return false;
#endif
}

// Memory that is fetched together: what one thread often writes and others read should not lie next to anything else.
constexpr std::size_t kApart = 128;

struct Settings {
  std::atomic<Engine> engine{Engine::pool};
  std::atomic<int> threads{1};
  std::atomic<std::ptrdiff_t> shared_block{0};  // see share_blocks_of
  std::atomic<std::uint64_t> forks{0};
  alignas(kApart) std::atomic<bool> busy{false};         // a region runs; a second caller works alone
  std::atomic<std::int64_t> last_begin{0}, last_end{0};  // of work worth two threads: nanoseconds
  std::atomic<std::int64_t> announced{0};                // when the next was
};
alignas(kApart) Settings settings;

std::int64_t now() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }
std::int64_t after(std::chrono::nanoseconds time) { return now() + time.count(); }

std::atomic<std::ptrdiff_t> counts[kMaxThreads];  // blocks that each thread ran since share_blocks_of

bool must_share() { return settings.shared_block.load() > 0; }

void run_block(const Job& job, std::ptrdiff_t b, int id) noexcept {
  if (must_share()) counts[id].fetch_add(1);
  job.run(job.context, job.units * b / job.blocks, job.units * (b + 1) / job.blocks);
}

// Of which job these blocks are left.
struct alignas(8) Range {
  std::uint32_t job;
  std::uint16_t begin, end;
};

// Each thread of a team has a part of a job's blocks, and takes them from the front; who has none left takes those of
// others from the back. So of parts that are equally quick each core finds in its cache what it had at the last step,
// and threads hardly touch what others write; and the caller never waits for a worker that has not woken up. Everything
// else here may change only while no block is left, so whoever takes one has read what belongs to it.
class Pool {
 public:
  void run(const Job& job, int wanted) noexcept {
    grow(wanted - 1);
    const int team = std::min(wanted, workers_.load() + 1), own_core = core();
    ++number_;
    job_ = job;
    team_.store(team, std::memory_order_relaxed);
    if (core_.load() != own_core) core_.store(own_core);
    if (must_share()) begun_.store(0);
    for (int id = team; id-- > 0;) {
      const auto first = [&](int i) { return static_cast<std::uint16_t>(job.blocks * i / team); };
      parts_[id].left.store({number_, first(id), first(id + 1)}, std::memory_order_release);
    }
    if (parked_.fetch_add(0) > 0) {  // not a load, which might come before what was stored
      {
        const std::lock_guard<std::mutex> lock(mutex_);  // whoever counted itself as parked now waits, or saw the job
      }
      wake_.notify_all();
    }
    expected_ += job.blocks - work(number_, 0);
    for (int i = 0; done_.load() != expected_; ++i) {
      i < kPauses ? pause() : std::this_thread::yield();
    }
    if (job.pace == Pace::brisk) brisk_until_.store(after(kBriskSpin));
  }

  bool is_awake() const { return parked_.load() < workers_.load(); }

  // Whether a region that begins now is as good as brisk, for it soon follows one.
  bool is_brisk(std::int64_t at) const { return at < brisk_until_.load(); }

  void stay_awake() { awake_until_.store(after(kBriskSpin)); }

 private:
  void grow(int workers) noexcept {
    try {
      for (; workers_ < workers; ++workers_) std::thread(&Pool::serve, this, workers_.load() + 1).detach();
    } catch (...) {  // the system has no more threads: fewer will do
    }
  }

  // Takes a block of those left to a thread; -1 if there is none.
  std::ptrdiff_t take(std::uint32_t number, int of, bool is_own) noexcept {
    std::atomic<Range>& left = parts_[of].left;
    for (Range range = left.load(); range.job == number && range.begin < range.end;) {
      Range rest = range;
      const std::ptrdiff_t block = is_own ? rest.begin++ : --rest.end;
      if (left.compare_exchange_weak(range, rest)) return block;
    }
    return -1;
  }

  // How many blocks it ran
  std::ptrdiff_t work(std::uint32_t number, int id) noexcept {
    const int team = team_.load(std::memory_order_relaxed);
    std::ptrdiff_t ran = 0;
    for (int i = 0; i < team;) {
      const std::ptrdiff_t block = take(number, (id + i) % team, i == 0);
      if (block < 0) {
        ++i;
        continue;
      }
      run_block(job_, block, id);
      if (++ran > 1 || !must_share()) continue;
      ++begun_;
      while (must_share() && begun_.load() < team) std::this_thread::yield();
    }
    return ran;
  }

  // Whether there is a job other than the last one that this worker saw; then it is the last.
  bool has_job(std::uint32_t& last, int id) const {
    const std::uint32_t job = parts_[id].left.load().job;
    if (job == last) return false;
    last = job;
    return true;
  }

  // Whether this worker is on the caller's core, and stays there: where that works without pause the system wakes it
  // there, and keeps it there, though another one may have nothing to do.
  bool is_in_the_way(std::int64_t& stays_until) const {
    const int own = core();
    if (own < 0 || own != core_.load()) return false;
    const std::int64_t start = now();
    if (start < stays_until || !leave(own)) return true;
    const std::int64_t end = now();
    if (end - start > std::chrono::nanoseconds(kArrival).count()) {
      stays_until = end + std::chrono::nanoseconds(kStay).count();
    }
    return false;
  }

  // Awake for a while, but not where the caller has to run.
  void wait_for_job(std::uint32_t& last, int id, std::int64_t& stays_until, Pace pace) {
    const std::int64_t deadline = after(pace == Pace::brisk ? kBriskSpin : kSpin);
    for (std::int64_t at = now(); at < deadline || at < awake_until_.load(); at = now()) {
      if (is_in_the_way(stays_until)) break;
      for (int i = 0; i < 16; ++i) {
        if (has_job(last, id)) return;
        pause();
      }
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++parked_;
    wake_.wait(lock, [&] { return has_job(last, id); });
    --parked_;
    lock.unlock();
    is_in_the_way(stays_until);
  }

  void serve(int id) {
    const DefaultFloatMode mode;
    std::int64_t stays_until = 0;  // on the caller's core, if it finds itself there
    Pace pace = Pace::single;
    for (std::uint32_t last = 0;;) {
      wait_for_job(last, id, stays_until, pace);
      const std::ptrdiff_t ran = work(last, id);
      if (ran == 0) continue;
      pace = job_.pace;
      done_.fetch_add(ran);  // until now the job could neither end nor be replaced
    }
  }

  struct alignas(kApart) Part {
    std::atomic<Range> left{Range{0, 0, 0}};
  };
  Part parts_[kMaxThreads];
  alignas(kApart) Job job_{};
  std::atomic<int> team_{1};
  alignas(kApart) std::atomic<std::ptrdiff_t> done_{0};  // blocks, by workers
  alignas(kApart) std::uint32_t number_ = 0;             // of the last job
  std::ptrdiff_t expected_ = 0;                          // of done_
  std::atomic<std::int64_t> brisk_until_{0};             // nanoseconds
  std::atomic<int> workers_{0}, parked_{0};
  alignas(kApart) std::atomic<std::int64_t> awake_until_{0};
  std::atomic<int> core_{-1};  // where the caller runs
  std::atomic<int> begun_{0};  // threads, while blocks must be shared
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Never destroyed: at exit, workers may still be parked in it.
alignas(Pool) unsigned char pool_memory[sizeof(Pool)];
Pool* const pool = new (pool_memory) Pool;

// From how many bytes on two threads pay, by how long ago they last had to do: it is beside other work where that took
// longer.
std::ptrdiff_t parallel_bytes(Pace pace, std::int64_t at) {
  if (pace == Pace::brisk && engine() == Engine::pool) return kBriskBytes;
  const std::int64_t end = settings.last_end.load(), announced = settings.announced.load();
  const std::int64_t pause = (announced > end ? announced : at) - end;
  if (pause < std::chrono::nanoseconds(kSpin).count() || pool->is_awake()) return kSpinBytes;
  return pause < end - settings.last_begin.load() ? kWakeBytes : kAmidBytes;
}

// In the child of a fork only the calling thread lives: what the others held is let go, and a pool without workers
// replaces the one that had them.
#ifndef _WIN32
void after_fork_in_child() {
  new (pool_memory) Pool;
  settings.busy.store(false);
  settings.forks.fetch_add(1);
}
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

#ifdef _OPENMP
void run_openmp(const Job& job, int team) noexcept {
  std::atomic<std::ptrdiff_t> next{0};
#pragma omp parallel num_threads(team)
  {
    const DefaultFloatMode mode;
    for (std::ptrdiff_t b; (b = next.fetch_add(1)) < job.blocks;) {
      run_block(job, b, omp_get_thread_num());
      while (must_share() && next.load() < omp_get_num_threads()) std::this_thread::yield();
    }
  }
}
// After a fork libgomp waits for ever for a team, whoever made it, that only the parent has.
bool openmp_can_run() { return !omp_in_parallel() && settings.forks == 0; }
#else
void run_openmp(const Job&, int) noexcept {}
bool openmp_can_run() { return false; }
#endif

}  // namespace

DefaultFloatMode::DefaultFloatMode() noexcept {
#if defined(__x86_64__)
  constexpr unsigned defaults = 0x1f80;  // all exceptions masked, to nearest, no flush to zero
  found_ = __builtin_ia32_stmxcsr();
  if ((found_ & ~0x3full) != defaults) __builtin_ia32_ldmxcsr(defaults);
#elif defined(__aarch64__)
  __asm__ volatile("mrs %0, fpcr" : "=r"(found_));
  if (found_ != 0) __asm__ volatile("msr fpcr, %0" : : "r"(0ull));
#endif
}

DefaultFloatMode::~DefaultFloatMode() {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(static_cast<unsigned>(found_));
#elif defined(__aarch64__)
  if (found_ != 0) __asm__ volatile("msr fpcr, %0" : : "r"(found_));
#endif
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

Engine engine() { return settings.engine.load(); }

void set_engine(Engine engine) {
  if (engine == Engine::openmp && !has_openmp()) {
    throw std::runtime_error("threading \"openmp\" is not available: steepest was built by a compiler without OpenMP");
  }
  settings.engine.store(engine);
}

int threads() { return settings.threads.load(); }

void set_threads(int n) { settings.threads.store(n); }

std::uint64_t forks() { return settings.forks.load(); }

bool is_large(std::ptrdiff_t bytes) { return bytes >= kUnlockBytes; }

bool is_shareable(std::ptrdiff_t bytes) { return bytes >= kBriskBytes || must_share(); }

void announce(std::ptrdiff_t bytes) {
  if (bytes < kSpinBytes) return;
  settings.announced.store(now());
  if (pool->is_awake()) pool->stay_awake();
}

void share_blocks_of(std::ptrdiff_t units) {
  for (auto& count : counts) count.store(0);
  settings.shared_block.store(units);
}

std::vector<std::ptrdiff_t> blocks_run() {
  std::vector<std::ptrdiff_t> result;
  for (int id = 0; id < threads(); ++id) result.push_back(counts[id].load());
  return result;
}

void run(const Job& wanted, std::ptrdiff_t bytes_per_unit) noexcept {
  const DefaultFloatMode mode;
  Job job = wanted;
  const std::ptrdiff_t bytes = job.units * bytes_per_unit;
  const std::ptrdiff_t shared_block = settings.shared_block.load();
  if (!is_shareable(bytes)) {  // no need for what takes longer than the least work
    if (job.units > 0) job.run(job.context, 0, job.units);
    return;
  }
  const std::ptrdiff_t all_threads = threads();  // another thread may change it
  const std::int64_t begin = now();
  if (pool->is_brisk(begin)) job.pace = Pace::brisk;
  const bool is_timed = bytes >= (job.pace == Pace::brisk ? kBriskBytes : kSpinBytes);
  if (shared_block > 0) {
    job.blocks = (job.units + shared_block - 1) / shared_block;
  } else if (is_timed && bytes >= parallel_bytes(job.pace, begin)) {
    const std::ptrdiff_t block = std::clamp(bytes / (kBlocksPerThread * all_threads), kMinBlockBytes, kMaxBlockBytes);
    const std::ptrdiff_t wanted = (bytes + block - 1) / block, more = all_threads - 1;
    const bool is_even = wanted > all_threads;  // as many for each thread
    job.blocks = std::min(is_even ? (wanted + more) / all_threads * all_threads : wanted, job.units);
  }
  job.blocks = std::min(job.blocks, kMaxBlocks);
  const int team = static_cast<int>(std::min(all_threads, job.blocks));
  if (team <= 1 || (engine() == Engine::openmp && !openmp_can_run()) || settings.busy.exchange(true)) {
    for (std::ptrdiff_t b = 0; b < job.blocks; ++b) run_block(job, b, 0);
  } else {
    if (engine() == Engine::openmp) {
      run_openmp(job, team);
    } else {
      pool->run(job, team);
    }
    settings.busy.store(false);
  }
  if (!is_timed) return;
  settings.last_begin.store(begin);
  settings.last_end.store(now());
}

}  // namespace steepest::parallel
