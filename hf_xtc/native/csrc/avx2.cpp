// AVX2: unsigned bytes times signed bytes in pairs (no VNNI), and binary codes by table lookup.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

TARGET("avx2,fma,f16c,bmi2")

#define VARIANT avx2_code
#define VECTOR_BYTES 32

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 3;
constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = true;
constexpr int SEXTET_ROWS = 0;

template <class V>
static inline V fused(V a, V b, V c) {
  const auto load = [](const V& v) { return _mm256_loadu_ps((const float*)&v); };
  V sum;
  _mm256_storeu_ps((float*)&sum, _mm256_fmadd_ps(load(a), load(b), load(c)));
  return sum;
}

#include "lookup.inl"

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations. Pairs of products add up in 16 bits for
// as long as codes below `levels` cannot overflow them.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  const int64_t safe = 32767 / (256 * (levels - 1));
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t start = 0; start < quads; start += safe) {
    const int64_t end = start + safe < quads ? start + safe : quads;
    __m256i sum[M][2];
    for (int i = 0; i < M; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    for (int64_t q = start; q < end; ++q) {
      const __m256i c0 = _mm256_loadu_si256((const __m256i*)(codes + q * 64));
      const __m256i c1 = _mm256_loadu_si256((const __m256i*)(codes + q * 64 + 32));
      for (int i = 0; i < M; ++i) {
        int32_t four;
        memcpy(&four, x + i * stride + q * 4, 4);
        const __m256i values = _mm256_set1_epi32(four);
        sum[i][0] = _mm256_add_epi16(sum[i][0], _mm256_maddubs_epi16(c0, values));
        sum[i][1] = _mm256_add_epi16(sum[i][1], _mm256_maddubs_epi16(c1, values));
        HOLD(sum[i][0], sum[i][1]);
      }
    }
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < 2; ++j) {
        __m256i* to = (__m256i*)(sums + i * TILE + j * 8);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_madd_epi16(sum[i][j], ones)));
      }
  }
}

template <int M>
static void dot_rows(int64_t m, const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  if (m >= M) return dot_panel<M>(codes, x, stride, quads, levels, sums);
  if constexpr (M > 1) dot_rows<M - 1>(m, codes, x, stride, quads, levels, sums);
}

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int levels, int32_t* sums) {
  for (int p = 0; p < 4; ++p)
    for (int64_t r = 0; r < rows; r += 6)
      dot_rows<6>(rows - r, codes + p * panel, x + r * stride, stride, quads, levels, sums + r * TILE + p * 16);
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"

namespace xtc {
const Variant avx2 = {"avx2", avx2_code::linear, avx2_code::encoder, avx2_code::fake};
}
END_TARGET
#else
namespace xtc {
const Variant avx2 = {nullptr, nullptr, nullptr, nullptr};
}
#endif
