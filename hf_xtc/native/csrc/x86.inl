// The tables of binary codes (lookup.inl), for AVX2 and above.

// The subset sums of four activations: 16 low parts of 5 bits, then 16 high parts.
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
