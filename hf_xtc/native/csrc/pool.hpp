// Threads that share the pieces of one job after another.
#pragma once

#include <cstdint>

#if !defined(__wasm__)
#include <atomic>
#include <condition_variable>
#include <mutex>
#endif

namespace xtc {

// How many threads to use, and where they come from: the OpenMP of the process (GOMP_parallel), since its threads keep
// their processors busy for milliseconds after other work; null: threads of this library.
struct Threads {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int64_t number;
};

#if defined(__wasm__)  // one thread, which needs no pool.cpp

struct Crew {
  template <class F>
  void for_each(int64_t pieces, F f) {
    for (int64_t piece = 0; piece < pieces; ++piece) f(piece, 0);
  }
};

template <class F>
static inline void with_crew(const Threads&, F body) {
  Crew crew;
  body(crew);
}

#else

using Piece = void (*)(void* data, int64_t piece, int64_t thread);

// The caller, thread 0, and its helpers. The caller never waits for a helper that has not begun a piece: one that gets no
// processor in time costs nothing.
class Crew {
  // A job is published by its number in the upper half of `ticket`; the lower half is its next piece, or NONE. Whoever
  // takes a piece by compare-and-swap has read the job that it belongs to, since its parts change only under NONE.
  static constexpr uint64_t NONE = UINT32_MAX;
  std::atomic<uint64_t> ticket{NONE};
  std::atomic<int64_t> count{0}, done{0}, limit{1};
  std::atomic<Piece> body{nullptr};
  std::atomic<void*> data{nullptr};
  std::atomic<bool> closed{false};

  std::atomic<int> sleeping{0};
  std::mutex mutex;
  std::condition_variable awake;

  uint32_t take(int64_t thread);
  void wake();

 public:
  // Threads of the jobs that follow.
  void set_limit(int64_t threads) { limit = threads; }

  // Calls f(data, piece, thread) for all pieces from 0 to `pieces`; returns when all calls have returned.
  void share(int64_t pieces, Piece f, void* with);

  // Computes pieces until the crew is closed; without work for a while, a helper sleeps if it may.
  void help(int64_t thread, bool may_sleep);
  void close();

  // f(piece, thread), likewise.
  template <class F>
  void for_each(int64_t pieces, F f) {
    share(pieces, [](void* data, int64_t piece, int64_t thread) { (*(F*)data)(piece, thread); }, &f);
  }
};

void run_with_crew(const Threads& threads, void (*body)(void* data, Crew& crew), void* data);

// body(crew), on the calling thread.
template <class F>
static inline void with_crew(const Threads& threads, F body) {
  run_with_crew(threads, [](void* data, Crew& crew) { (*(F*)data)(crew); }, &body);
}

#endif

}  // namespace xtc
