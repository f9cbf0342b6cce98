// The code of both AVX512 variants: avx512.cpp (VNNI) and avx512_vbmi.cpp (VNNI and VBMI), which set the instruction set.
#define VECTOR_BYTES 64

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 6;
constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = true;
constexpr bool MULTIPLIES_PAIRS = true;
#ifdef VBMI
constexpr int SEXTET_ROWS = 6;
#else
constexpr int SEXTET_ROWS = 0;
#endif

template <class V>
static inline V fused(V a, V b, V c) {
  const auto load = [](const V& v) { return _mm512_loadu_ps((const float*)&v); };
  V sum;
  _mm512_storeu_ps((float*)&sum, _mm512_fmadd_ps(load(a), load(b), load(c)));
  return sum;
}

template <class V>
static inline void narrow(V q, int8_t* to) {
  _mm_storeu_si128((__m128i*)to, _mm512_maskz_cvtsepi32_epi8(0xffff, _mm512_loadu_si512(&q)));
}

#include "x86.inl"

#include "lookup.inl"

// sums[M][64] += the 16-bit sums of 64 rows, of which unpacking left rows 16 * lane + 8 * k and up to 7 more in each
// lane, less an offset.
template <int M>
static inline void add_wide(const __m512i (&wide)[M][2], int64_t offset, int32_t* sums) {
  const __m512i shift = _mm512_set1_epi16((int16_t)offset);
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
    for (int k = 0; k < 2; ++k) {
      int16_t exact[32];
      _mm512_storeu_si512(exact, _mm512_sub_epi16(wide[i][k], shift));
      for (int lane = 0; lane < 4; ++lane) {
        __m256i* to = (__m256i*)(sums + i * TILE + lane * 16 + k * 8);
        const __m256i rows = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(exact + lane * 8)));
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), rows));
      }
    }
}

static inline Bytes repeat(const uint8_t* table) {
  return (Bytes)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
}

static inline Bytes look_up(Bytes table, Bytes numbers) { return (Bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)numbers); }

static inline void widen(Bytes low, Bytes high, Wide& sums) {
  const __m512i l = (__m512i)low, h = (__m512i)high, weights = _mm512_set1_epi16(1 + (32 << 8));
  sums.first += (Shorts)_mm512_maddubs_epi16(_mm512_unpacklo_epi8(l, h), weights);
  sums.second += (Shorts)_mm512_maddubs_epi16(_mm512_unpackhi_epi8(l, h), weights);
}

static inline void add_words(const Wide& wide, int offset, int32_t* sums) {
  const __m512i words[1][2] = {{(__m512i)wide.first, (__m512i)wide.second}};
  add_wide<1>(words, offset, sums);
}

#ifdef VBMI
// Six activations have 64 subset sums, as many as bytes in a register: `vpermb` looks up 64 rows at once, so that one
// instruction stands for 192 multiplications, two tables taken together. A sum (11 bits, made positive by adding 768)
// is split into 6 and 5 bits. Four bits of an entry's number come from the lane and the place in it where packing leaves
// a sum, which is why the codes have their bits in the order of columns 0, 1, 4, 5, 2, 3.
static void make_sextet_tables(const int8_t* x, int64_t groups, uint8_t* tables) {
  alignas(64) static const uint8_t subsets[64] = {
      0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0,
      0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1};
  const __m512i four = _mm512_load_si512(subsets), offset = _mm512_set1_epi32(768), low = _mm512_set1_epi16(63);
  const __m512i fifth = _mm512_set1_epi32(1), sixth = _mm512_set1_epi32(1 << 8), both = _mm512_set1_epi32(1 | 1 << 8);
  for (int64_t g = 0; g < groups; ++g) {
    int32_t parts[2];
    memcpy(parts, x + 6 * g, 8);
    const __m512i last = _mm512_set1_epi32(parts[1]);
    const __m512i none = _mm512_dpbusd_epi32(offset, four, _mm512_set1_epi32(parts[0]));
    const __m512i a = _mm512_packs_epi32(none, _mm512_dpbusd_epi32(none, fifth, last));
    const __m512i b = _mm512_packs_epi32(_mm512_dpbusd_epi32(none, sixth, last), _mm512_dpbusd_epi32(none, both, last));
    const __m512i lows = _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
    _mm512_storeu_si512(tables + 128 * g, lows);
    _mm512_storeu_si512(tables + 128 * g + 64, _mm512_packus_epi16(_mm512_srli_epi16(a, 6), _mm512_srli_epi16(b, 6)));
  }
}

// sums[M][64] += codes of 64 rows (SEXTETS) times M rows of activations given by their tables; a multiple of 4 groups.
template <int M>
static void lookup_sextets(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
  const __m512i weights = _mm512_set1_epi16(1 + (64 << 8)), zero = _mm512_setzero_si512();
  for (int64_t start = 0; start < groups; start += 40) {  // sums of 240 int8 values fit 16 bits
    const int64_t end = start + 40 < groups ? start + 40 : groups;
    __m512i wide[M][2];
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) wide[i][0] = wide[i][1] = zero;
    for (int64_t g = start; g < end; g += 4) {
      __m512i low[M], high[M];
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i) low[i] = high[i] = zero;
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k, codes += 64) {
        const __m512i c = _mm512_loadu_si512(codes);
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) {
          const uint8_t* table = tables + i * stride + (g + k) * 128;
          low[i] = _mm512_add_epi8(low[i], _mm512_permutexvar_epi8(c, _mm512_loadu_si512(table)));
          high[i] = _mm512_add_epi8(high[i], _mm512_permutexvar_epi8(c, _mm512_loadu_si512(table + 64)));
          HOLD(low[i], high[i]);
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i) {
        wide[i][0] = _mm512_add_epi16(wide[i][0], _mm512_maddubs_epi16(_mm512_unpacklo_epi8(low[i], high[i]), weights));
        wide[i][1] = _mm512_add_epi16(wide[i][1], _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low[i], high[i]), weights));
      }
    }
    add_wide<M>(wide, (end - start) * 768, sums);
  }
}
#endif

// BYTES codes of four columns of a tile: `panel` bytes from 16 rows to the next.
struct ByteCodes {
  const uint8_t* codes;
  int64_t panel;
  void load(int64_t quad, __m512i (&c)[4]) const {
    for (int p = 0; p < 4; ++p) c[p] = _mm512_loadu_si512(codes + p * panel + quad * 64);
  }
};

// PAIRS codes of four columns of a tile. Spreading them takes few of the units that multiply, and a tile fits the L1 cache.
struct PairCodes {
  const uint8_t* codes;
  void load(int64_t quad, __m512i (&c)[4]) const {
    const __m512i all = _mm512_loadu_si512(codes + quad * 64), two = _mm512_set1_epi8(3);
    c[0] = _mm512_and_si512(all, two);
    c[1] = _mm512_and_si512(_mm512_srli_epi16(all, 2), two);
    c[2] = _mm512_and_si512(_mm512_srli_epi16(all, 4), two);
    c[3] = _mm512_and_si512(_mm512_srli_epi16(all, 6), two);
  }
};

// The loops over rows are unrolled by pragma: otherwise gcc keeps sums of 4 rows and more in memory.
template <int M, class Codes>
static void dot_rows(int64_t m, const Codes& codes, const int8_t* x, int64_t stride, int64_t quads, bool add, int32_t* sums) {
  if constexpr (M > 1)
    if (m < M) return dot_rows<M - 1>(m, codes, x, stride, quads, add, sums);
  __m512i sum[M][4];
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
    for (int p = 0; p < 4; ++p) sum[i][p] = add ? _mm512_loadu_si512(sums + i * TILE + p * 16) : _mm512_setzero_si512();
  for (int64_t q = 0; q < quads; ++q) {
    __m512i c[4];
    codes.load(q, c);
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

template <class Codes>
static void dot_all(const Codes& codes, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, bool add, int32_t* sums) {
  const int64_t parts = (rows + 5) / 6;  // of like sizes: in one of a row or two, each addition would wait for the last
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t r = rows * part / parts;
    dot_rows<6>(rows * (part + 1) / parts - r, codes, x + r * stride, stride, quads, add, sums + r * TILE);
  }
}

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int, int32_t* sums) {
  dot_all(ByteCodes{codes, panel}, x, stride, rows, quads, true, sums);
}

// The same for PAIRS codes; without `add` the sums are written.
static void dot_two_bits(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, bool add, int32_t* sums) {
  dot_all(PairCodes{codes}, x, stride, rows, quads, add, sums);
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"
