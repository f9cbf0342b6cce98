#include "pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

namespace xtc {
namespace {

constexpr std::chrono::microseconds SPIN(200);  // that a helper without work waits before it sleeps

void pause(int spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
  if (spins % 256 == 255) std::this_thread::yield();
}

}  // namespace

// Takes and computes pieces until none is left; returns the number of the job that it saw last.
uint32_t Crew::take(int64_t thread) {
  for (;;) {
    uint64_t now = ticket.load();
    const int64_t piece = now & NONE;
    const auto work = body.load();
    void* const with = data.load();
    if (piece >= count.load() || thread >= limit.load()) return now >> 32;
    if (!ticket.compare_exchange_weak(now, now + 1)) continue;
    work(with, piece, thread);
    done.fetch_add(1);
  }
}

void Crew::share(int64_t pieces, Piece f, void* with) {
  if (pieces < 2 || limit.load(std::memory_order_relaxed) < 2) {
    for (int64_t piece = 0; piece < pieces; ++piece) f(with, piece, 0);
    return;
  }
  const uint64_t job = ticket.load(std::memory_order_relaxed) >> 32;
  ticket = job << 32 | NONE;
  body = f;
  data = with;
  done = 0;
  count = pieces;
  ticket = (job + 1) << 32;
  wake();
  take(0);
  for (int spins = 0; done.load() < pieces; ++spins) pause(spins);
}

void Crew::help(int64_t thread, bool may_sleep) {
  for (uint32_t seen = 0; !closed.load(); seen = take(thread)) {
    const auto idle = [&] { return ticket.load() >> 32 == seen && !closed.load(); };
    auto start = std::chrono::steady_clock::now();
    for (int spins = 0; idle(); ++spins) {
      pause(spins);
      if (!may_sleep || spins % 32 < 31 || std::chrono::steady_clock::now() - start < SPIN) continue;
      std::unique_lock<std::mutex> lock(mutex);
      ++sleeping;
      awake.wait(lock, [&] { return !idle(); });
      --sleeping;
    }
  }
}

void Crew::wake() {
  if (!sleeping.load()) return;
  mutex.lock();  // a helper is now before its last look at the ticket, or asleep
  mutex.unlock();
  awake.notify_all();
}

void Crew::close() {
  closed = true;
  wake();
}

namespace {

// Processes that were forked from this one have copies of its pools, and none of their threads.
std::atomic<int> forks{0};
const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });

// The threads of one calling thread: made at its first call, joined when it ends.
class Pool {
  std::vector<std::thread> workers;

 public:
  const int born = forks;
  Crew crew;

  // Signals stay with the threads that were there. Where no more threads can be had, fewer share the work.
  void grow(size_t wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      while (workers.size() < wanted) workers.emplace_back(&Crew::help, &crew, (int64_t)workers.size() + 1, true);
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Pool() {
    crew.close();
    for (auto& worker : workers) worker.join();
  }
};

struct Holder {
  Pool* pool = nullptr;

  Pool& get() {
    if (!pool || pool->born != forks) pool = new Pool;  // a copy from before a fork cannot be joined: it stays
    return *pool;
  }

  ~Holder() {
    if (pool && pool->born == forks) delete pool;
  }
};

thread_local Holder holder;

struct Region {  // of OpenMP
  void (*body)(void*, Crew&);
  void* data;
  Crew crew;
  const pthread_t caller = pthread_self();
  std::atomic<int64_t> helpers{0};
};

}  // namespace

void run_with_crew(const Threads& threads, void (*body)(void*, Crew&), void* data) {
  if (threads.number < 2) {
    Crew alone;
    return body(data, alone);
  }
  if (!threads.parallel) {
    Pool& pool = holder.get();
    pool.grow(threads.number - 1);
    pool.crew.set_limit(threads.number);
    return body(data, pool.crew);
  }
  Region region{body, data};
  region.crew.set_limit(threads.number);
  threads.parallel(
      [](void* of) {
        Region& region = *(Region*)of;
        if (!pthread_equal(pthread_self(), region.caller)) return region.crew.help(++region.helpers, false);
        region.body(region.data, region.crew);
        region.crew.close();
      },
      &region, threads.number, 0);
}

}  // namespace xtc
