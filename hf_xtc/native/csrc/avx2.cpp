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
constexpr bool MULTIPLIES_PAIRS = false;
constexpr int SEXTET_ROWS = 0;

template <class V>
static inline V fused(V a, V b, V c) {
  const auto load = [](const V& v) { return _mm256_loadu_ps((const float*)&v); };
  V sum;
  _mm256_storeu_ps((float*)&sum, _mm256_fmadd_ps(load(a), load(b), load(c)));
  return sum;
}

// Converts the 32-bit numbers of a vector to bytes, 8 at a time.
template <class V>
static inline void narrow(V q, int8_t* to) {
  __m256i parts[sizeof q / 32];
  memcpy(parts, &q, sizeof q);
  for (const __m256i& part : parts) {
    const __m256i words = _mm256_packs_epi32(part, part), bytes = _mm256_packs_epi16(words, words);
    const __m256i both = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64((__m128i*)to, _mm256_castsi256_si128(both));
    to += 8;
  }
}

#include "x86.inl"

#include "lookup.inl"

static inline Bytes repeat(const uint8_t* table) {
  return (Bytes)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
}

static inline Bytes look_up(Bytes table, Bytes numbers) { return (Bytes)_mm256_shuffle_epi8((__m256i)table, (__m256i)numbers); }

// `first` has rows 0 to 7 and 16 to 23, `second` the others.
static inline void widen(Bytes low, Bytes high, Wide& sums) {
  const __m256i l = (__m256i)low, h = (__m256i)high, weights = _mm256_set1_epi16(1 + (32 << 8));
  sums.first += (Shorts)_mm256_maddubs_epi16(_mm256_unpacklo_epi8(l, h), weights);
  sums.second += (Shorts)_mm256_maddubs_epi16(_mm256_unpackhi_epi8(l, h), weights);
}

static inline void add_words(const Wide& wide, int offset, int32_t* sums) {
  for (int k = 0; k < 2; ++k) {
    const __m256i exact = _mm256_sub_epi16((__m256i)(k ? wide.second : wide.first), _mm256_set1_epi16((int16_t)offset));
    __m256i* to = (__m256i*)(sums + k * 8);
    const __m256i a = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(exact));
    const __m256i b = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(exact, 1));
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), a));
    _mm256_storeu_si256(to + 2, _mm256_add_epi32(_mm256_loadu_si256(to + 2), b));
  }
}

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
