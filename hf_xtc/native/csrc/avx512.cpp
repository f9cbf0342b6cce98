// AVX512 with VNNI: four unsigned times signed bytes added to 32 bits in one instruction, and binary codes by table
// lookup.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#include <sched.h>
#include <string.h>

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")

#define VARIANT avx512_code
#define VECTOR_BYTES 64

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 6;
constexpr int64_t MAX_ROWS = 36;

template <class V>
static inline V fused(V a, V b, V c) {
  const auto load = [](const V& v) { return _mm512_loadu_ps((const float*)&v); };
  V sum;
  _mm512_storeu_ps((float*)&sum, _mm512_fmadd_ps(load(a), load(b), load(c)));
  return sum;
}

static inline void relax(int spins) {
  _mm_pause();
  if (spins % 1024 == 1023) sched_yield();
}

#include "lookup.inl"

// As lookup.inl's, for 64 rows at once.
template <int M>
static void lookup(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
  const __m512i nibble = _mm512_set1_epi8(15), weights = _mm512_set1_epi16(1 + (32 << 8)), zero = _mm512_setzero_si512();
  for (int64_t start = 0; start < groups; start += 64) {
    const int64_t end = start + 64 < groups ? start + 64 : groups;
    __m512i wide[M][2];
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) wide[i][0] = wide[i][1] = zero;
    for (int64_t g = start; g < end; g += 8) {
      __m512i low[M], high[M];
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i) low[i] = high[i] = zero;
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair, codes += 64) {
        const __m512i both = _mm512_loadu_si512(codes);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m512i c = _mm512_and_si512(half ? _mm512_srli_epi16(both, 4) : both, nibble);
#pragma GCC unroll 6
          for (int i = 0; i < M; ++i) {
            const uint8_t* table = tables + i * stride + (g + 2 * pair + half) * 32;
            const __m512i l = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
            const __m512i h = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(table + 16)));
            low[i] = _mm512_add_epi8(low[i], _mm512_shuffle_epi8(l, c));
            high[i] = _mm512_add_epi8(high[i], _mm512_shuffle_epi8(h, c));
            HOLD(low[i], high[i]);
          }
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i) {
        wide[i][0] = _mm512_add_epi16(wide[i][0], _mm512_maddubs_epi16(_mm512_unpacklo_epi8(low[i], high[i]), weights));
        wide[i][1] = _mm512_add_epi16(wide[i][1], _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low[i], high[i]), weights));
      }
    }
    const __m512i offset = _mm512_set1_epi16((int16_t)((end - start) * 512));  // sums of 256 int8 values fit 16 bits
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i)
      for (int k = 0; k < 2; ++k) {
        int16_t exact[32];
        _mm512_storeu_si512(exact, _mm512_sub_epi16(wide[i][k], offset));
        for (int lane = 0; lane < 4; ++lane) {  // unpacking leaves rows 16 * lane + 8 * k and up to 7 more in a lane
          __m256i* to = (__m256i*)(sums + i * TILE + lane * 16 + k * 8);
          const __m256i rows = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(exact + lane * 8)));
          _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), rows));
        }
      }
  }
}

// The loops over rows are unrolled by pragma: otherwise gcc keeps sums of 4 rows and more in memory.
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
END_TARGET
#else
namespace xtc {
const Variant avx512 = {nullptr, nullptr, nullptr, nullptr};
}
#endif
