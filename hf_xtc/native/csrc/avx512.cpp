// AVX512 with VNNI: four unsigned times signed bytes added to 32 bits in one instruction, and binary codes by table
// lookup.
#include "kernels.hpp"
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#include <immintrin.h>
#include <sched.h>
#include <string.h>

#define VARIANT avx512_code
#define VECTOR_BYTES 64

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 6;
constexpr int64_t MAX_ROWS = 36;

static inline void relax(int spins) {
  _mm_pause();
  if (spins % 1024 == 1023) sched_yield();
}

#include "lookup.inl"

// The loops over rows are unrolled on request: left alone, gcc keeps sums of 4 rows and more in memory.
template <int M>
static void dot_rows(int64_t m, const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t quads, int32_t* sums) {
  if constexpr (M > 1)
    if (m < M) return dot_rows<M - 1>(m, codes, panel, x, stride, quads, sums);
  __m512i sum[M][4];
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
    for (int p = 0; p < 4; ++p) sum[i][p] = _mm512_loadu_si512(sums + i * TILE + p * 16);
  for (int64_t q = 0; q < quads; ++q) {
    __m512i c[4];
    for (int p = 0; p < 4; ++p) c[p] = _mm512_loadu_si512(codes + p * panel + q * 64);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
      int32_t four;
      memcpy(&four, x + i * stride + q * 4, 4);
      const __m512i values = _mm512_set1_epi32(four);
      for (int p = 0; p < 4; ++p) sum[i][p] = _mm512_dpbusd_epi32(sum[i][p], c[p], values);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
    for (int p = 0; p < 4; ++p) _mm512_storeu_si512(sums + i * TILE + p * 16, sum[i][p]);
}

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int, int32_t* sums) {
  for (int64_t r = 0; r < rows; r += 6) dot_rows<6>(rows - r, codes, panel, x + r * stride, stride, quads, sums + r * TILE);
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"

namespace xtc {
const Variant avx512 = {"avx512_vnni", avx512_code::linear, avx512_code::encoder, avx512_code::fake};
}
#else
namespace xtc {
const Variant avx512 = {nullptr, nullptr, nullptr, nullptr};
}
#endif
