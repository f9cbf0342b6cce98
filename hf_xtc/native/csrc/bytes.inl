// BYTES codes times activations with what any set of vector instructions has: products of 16-bit numbers. A variant defines
// DOT_ROWS, the rows of activations that are taken at once, and may define its own `dot_panel` (and OWN_DOT_PANEL).

#ifndef OWN_DOT_PANEL
typedef int16_t SignedShorts __attribute__((vector_size(16)));
typedef int32_t Quads __attribute__((vector_size(16)));

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations. Products of even and of odd columns add up
// in 16 bits for as long as codes below `levels` cannot overflow them.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  const int64_t safe = 32767 / (256 * (levels - 1));
  for (int64_t start = 0; start < quads; start += safe) {
    const int64_t end = start + safe < quads ? start + safe : quads;
    SignedShorts sum[M][4] = {};
    for (int64_t q = start; q < end; ++q) {
      SignedShorts even[M], odd[M];
      for (int i = 0; i < M; ++i) {
        int32_t four;
        memcpy(&four, x + i * stride + q * 4, 4);
        const Quads values = {four, four, four, four};
        even[i] = (SignedShorts)values << 8 >> 8;
        odd[i] = (SignedShorts)values >> 8;
      }
      for (int p = 0; p < 4; ++p) {
        SignedShorts both;
        memcpy(&both, codes + q * 64 + p * 16, 16);
        const SignedShorts low = both & 255, high = both >> 8;
        for (int i = 0; i < M; ++i) sum[i][p] += low * even[i] + high * odd[i];
      }
    }
    for (int i = 0; i < M; ++i)
      for (int p = 0; p < 4; ++p) {
        int16_t parts[8];
        memcpy(parts, &sum[i][p], sizeof parts);
        for (int j = 0; j < 4; ++j) sums[i * TILE + p * 4 + j] += parts[2 * j] + parts[2 * j + 1];
      }
  }
}
#endif

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int levels, int32_t* sums) {
  for (int p = 0; p < 4; ++p, codes += panel, sums += 16) {
    int64_t r = 0;
    for (; r + DOT_ROWS <= rows; r += DOT_ROWS) dot_panel<DOT_ROWS>(codes, x + r * stride, stride, quads, levels, sums + r * TILE);
    for (; r < rows; ++r) dot_panel<1>(codes, x + r * stride, stride, quads, levels, sums + r * TILE);
  }
}
