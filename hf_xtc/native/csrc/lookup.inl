// Shared by AVX2 and above: conversion of 32-bit numbers to bytes, and binary codes by table lookup.
//
// Four activations have 16 subset sums; four bits of a row's codes select one. A byte shuffle looks up 32 rows at
// once, so one instruction stands for 128 multiplications. A sum (10 bits, made positive by adding 512) is split into
// two tables of 5 bits, so that 8 looked-up values add up in a byte; then they are widened to 16 bits, and after 256
// columns to 32.

#if VECTOR_BYTES == 32
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
#endif

static void make_tables(const int8_t* x, int64_t groups, uint8_t* tables) {
  alignas(32) static const uint8_t subsets[2][32] = {
      {0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1},
      {0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1}};
  const __m256i first = _mm256_load_si256((const __m256i*)subsets[0]), second = _mm256_load_si256((const __m256i*)subsets[1]);
  const __m256i ones = _mm256_set1_epi16(1), offset = _mm256_set1_epi16(512), low = _mm256_set1_epi16(31);
  for (int64_t g = 0; g < groups; ++g) {
    int32_t four;
    memcpy(&four, x + 4 * g, 4);
    const __m256i values = _mm256_set1_epi32(four);
    const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(first, values), ones);
    const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(second, values), ones);
    const __m256i sums = _mm256_add_epi16(_mm256_packs_epi32(a, b), offset);
    const __m256i both = _mm256_packus_epi16(_mm256_and_si256(sums, low), _mm256_srli_epi16(sums, 5));
    _mm256_storeu_si256((__m256i*)(tables + 32 * g), _mm256_permute4x64_epi64(both, 0xd8));
  }
}

#if VECTOR_BYTES == 32
// sums[M][64] += codes of 64 rows (NIBBLES) times M rows of activations given by their tables; groups of 4 columns, a
// multiple of 16.
template <int M>
static void lookup(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
  const __m256i nibble = _mm256_set1_epi8(15), weights = _mm256_set1_epi16(1 + (32 << 8)), zero = _mm256_setzero_si256();
  for (int64_t start = 0; start < groups; start += 64) {
    const int64_t end = start + 64 < groups ? start + 64 : groups;
    __m256i wide[M][2][2];
    for (int i = 0; i < M; ++i) wide[i][0][0] = wide[i][0][1] = wide[i][1][0] = wide[i][1][1] = zero;
    for (int64_t g = start; g < end; g += 8) {
      __m256i low[M][2], high[M][2];
      for (int i = 0; i < M; ++i) low[i][0] = low[i][1] = high[i][0] = high[i][1] = zero;
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair, codes += 64) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          __m256i c0 = _mm256_loadu_si256((const __m256i*)codes), c1 = _mm256_loadu_si256((const __m256i*)(codes + 32));
          if (half) c0 = _mm256_srli_epi16(c0, 4), c1 = _mm256_srli_epi16(c1, 4);
          c0 = _mm256_and_si256(c0, nibble), c1 = _mm256_and_si256(c1, nibble);
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) {
            const uint8_t* table = tables + i * stride + (g + 2 * pair + half) * 32;
            const __m256i l = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
            low[i][0] = _mm256_add_epi8(low[i][0], _mm256_shuffle_epi8(l, c0));
            low[i][1] = _mm256_add_epi8(low[i][1], _mm256_shuffle_epi8(l, c1));
            HOLD(low[i][0], low[i][1]);
            const __m256i h = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(table + 16)));
            high[i][0] = _mm256_add_epi8(high[i][0], _mm256_shuffle_epi8(h, c0));
            high[i][1] = _mm256_add_epi8(high[i][1], _mm256_shuffle_epi8(h, c1));
            HOLD(high[i][0], high[i][1]);
          }
        }
      }
      for (int i = 0; i < M; ++i)
        for (int j = 0; j < 2; ++j) {
          const __m256i a = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low[i][j], high[i][j]), weights);
          const __m256i b = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low[i][j], high[i][j]), weights);
          wide[i][j][0] = _mm256_add_epi16(wide[i][j][0], a);
          wide[i][j][1] = _mm256_add_epi16(wide[i][j][1], b);
        }
    }
    const __m256i offset = _mm256_set1_epi16((int16_t)((end - start) * 512));  // sums of 256 int8 values fit 16 bits
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < 2; ++j)
        for (int k = 0; k < 2; ++k) {
          const __m256i exact = _mm256_sub_epi16(wide[i][j][k], offset);
          __m256i* to = (__m256i*)(sums + i * TILE + j * 32 + k * 8);
          const __m256i a = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(exact));
          const __m256i b = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(exact, 1));
          _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), a));
          _mm256_storeu_si256(to + 2, _mm256_add_epi32(_mm256_loadu_si256(to + 2), b));
        }
  }
}
#endif
