// The thread pool behind parallel.h. Each call of `run` is a round: threads take the next index until none is left.
//
// Kernels are short, often tens of microseconds, and follow each other closely. Threads therefore spin for a moment
// before they sleep, and the caller waits only for threads that have started, not for those still waking up.
//
// An exception of a task, such as a lack of memory, ends the call when no thread computes for it any more. MindSpore
// reports it.

#include "parallel.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace neonext {
namespace {

constexpr int kMostThreads = 256;
// Waking a sleeping thread costs about as much as this many pauses.
constexpr int kPauses = 1000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  Pool() : process_(getpid()) {
    for (int i = 1; i < threads(); ++i) {
      std::thread([this] { serve(); }).detach();
    }
  }

  void run(int64_t count, Task task, const void *body) {
    // Compute alone if the pool is busy, or after a fork, which the threads of the pool do not survive.
    std::unique_lock<std::mutex> mine(taken_, std::defer_lock);
    if (count < 2 || threads() < 2 || getpid() != process_ || !mine.try_lock()) {
      for (int64_t i = 0; i < count; ++i) {
        task(body, i);
      }
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      body_ = body;
      count_ = count;
      next_.store(0);
      open_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    work();
    // All indices are taken. A thread that has not started by now must not start, as `body` ends with this call.
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    for (int i = 0; i < kPauses && active_.load() > 0; ++i) {
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_.load() == 0; });
    if (const std::exception_ptr error = std::exchange(error_, nullptr)) {
      std::rethrow_exception(error);
    }
  }

 private:
  void work() {
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      try {
        task_(body_, i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        error_ = std::current_exception();
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kPauses && round_.load() == seen; ++i) {
        pause();
      }
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load() != seen; });
        seen = round_.load();
        if (!open_) {
          continue;
        }
        // Counted under the lock, so that `run` either sees this thread or has closed the round before it starts.
        active_.fetch_add(1);
      }
      work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (active_.fetch_sub(1) == 1) {
        done_.notify_one();
      }
    }
  }

  const pid_t process_;
  std::mutex taken_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> active_{0};
  std::atomic<int64_t> next_{0};
  bool open_ = false;
  Task task_ = nullptr;
  const void *body_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr error_;
};

// Set by Python. MindSpore changes OMP_NUM_THREADS when it is imported, so the variable says nothing here.
std::atomic<int> wanted{0};

int count_threads() {
  int count = wanted.load();
  cpu_set_t allowed;
  if (count < 1 && sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    count = CPU_COUNT(&allowed);
  }
  return count < 1 ? 1 : count > kMostThreads ? kMostThreads : count;
}

}  // namespace

int threads() {
  static const int count = count_threads();
  return count;
}

extern "C" void neonext_set_threads(int count) { wanted.store(count); }

void run(int64_t count, Task task, const void *body) {
  // Never destroyed: its threads may still wait in it when the process ends.
  static Pool *const pool = new Pool;
  pool->run(count, task, body);
}

}  // namespace neonext
