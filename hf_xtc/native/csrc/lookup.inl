// Binary codes by table lookup, written once for every instruction set that has a shuffle of bytes.
//
// Four activations have 16 subset sums; four bits of a row's codes select one. A byte shuffle looks up as many rows as a
// vector has bytes, so one instruction of 32 bytes stands for 128 multiplications. A sum (10 bits, made positive by adding
// 512) is split into two tables of 5 bits, so that 8 looked-up values add up in a byte; then they are widened to 16 bits,
// and after 256 columns to 32.
//
// The loops use the vector extensions that GCC and Clang share, and a variant defines only what these cannot say well:
//   repeat    16 bytes of a table in every 16 bytes of a vector
//   look_up   bytes of a table by numbers 0 to 15: vpshufb, tbl, i8x16.swizzle
//   widen     adds low + 32 * high to the 16-bit sums of a vector of rows, in any order of the rows
//   add_words  adds such sums, less an offset, to 32-bit sums, in the order of the rows
// Google Highway would name these four as well, but not replace the rest: kernels.inl is written in the same extensions,
// which need no dependency and give the same bits by construction; and Highway's own choice of a target at run time
// would stand beside the one of library.cpp.

typedef uint8_t Bytes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Shorts __attribute__((vector_size(VECTOR_BYTES)));

struct Wide {  // the 16-bit sums of as many rows as a vector has bytes
  Shorts first, second;
};

static inline Bytes repeat(const uint8_t* table);
static inline Bytes look_up(Bytes table, Bytes numbers);
static inline void widen(Bytes low, Bytes high, Wide& sums);
static inline void add_words(const Wide& wide, int offset, int32_t* sums);

// sums[M][64] += codes of 64 rows (NIBBLES) times M rows of activations given by their tables; groups of 4 columns, a
// multiple of 16.
template <int M>
static void lookup(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
  constexpr int PARTS = TILE / VECTOR_BYTES;
  for (int64_t start = 0; start < groups; start += 64) {
    const int64_t end = start + 64 < groups ? start + 64 : groups;
    Wide wide[M][PARTS];
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i)
      for (int p = 0; p < PARTS; ++p) wide[i][p] = Wide{};
    for (int64_t g = start; g < end; g += 8) {
      Bytes sum[M][2][PARTS];  // low parts, high parts
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i)
        for (int p = 0; p < PARTS; ++p) sum[i][0][p] = sum[i][1][p] = Bytes{};
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair, codes += TILE) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          Bytes c[PARTS];
#pragma GCC unroll 4
          for (int p = 0; p < PARTS; ++p) {
            memcpy(&c[p], codes + p * VECTOR_BYTES, VECTOR_BYTES);
            c[p] = half ? c[p] >> 4 : c[p] & 15;
          }
#pragma GCC unroll 6
          for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k) {
              const Bytes table = repeat(tables + i * stride + (g + 2 * pair + half) * 32 + k * 16);
#pragma GCC unroll 4
              for (int p = 0; p < PARTS; ++p) {
                sum[i][k][p] += look_up(table, c[p]);
                if (p % 2) HOLD(sum[i][k][p - 1], sum[i][k][p]);
              }
            }
            if (PARTS == 1) HOLD(sum[i][0][0], sum[i][1][0]);
          }
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; ++p) widen(sum[i][0][p], sum[i][1][p], wide[i][p]);
    }
    const int offset = (end - start) * 512;  // sums of 256 int8 values fit 16 bits
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < PARTS; ++p) add_words(wide[i][p], offset, sums + i * TILE + p * VECTOR_BYTES);
  }
}
