// The code of the NEON variants: neon.cpp (any 64-bit ARM processor), neon_dotprod.cpp and neon_i8mm.cpp, which set the
// instruction set.
//
// No such machine was at hand: loops were chosen by their instructions (benchmarks/instructions.py) and so that the sums
// of a step, 16 to 24 of the 32 registers, stay where they are.
#define VECTOR_BYTES 16

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 3;
constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = true;
constexpr bool MULTIPLIES_PAIRS = false;
constexpr int SEXTET_ROWS = 0;

template <class V>
static inline V fused(V a, V b, V c) {
  return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

template <class V>
static inline void narrow(V q, int8_t* to) {
  const int16x4_t words = vqmovn_s32((int32x4_t)q);
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  memcpy(to, &bytes, 4);
}

#include "lookup.inl"

static inline Bytes repeat(const uint8_t* table) { return (Bytes)vld1q_u8(table); }

static inline Bytes look_up(Bytes table, Bytes numbers) { return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)numbers); }

static inline void widen(Bytes low, Bytes high, Wide& sums) {
  const uint8x16_t l = (uint8x16_t)low, h = (uint8x16_t)high;
  const uint16x8_t first = vaddw_u8((uint16x8_t)sums.first, vget_low_u8(l)), second = vaddw_high_u8((uint16x8_t)sums.second, l);
  sums.first = (Shorts)vmlal_u8(first, vget_low_u8(h), vdup_n_u8(32));
  sums.second = (Shorts)vmlal_high_u8(second, h, vdupq_n_u8(32));
}

static inline void add_words(const Wide& wide, int offset, int32_t* sums) {
  const int16x8_t shift = vdupq_n_s16((int16_t)offset);
  for (int k = 0; k < 2; ++k) {
    const int16x8_t exact = vsubq_s16((int16x8_t)(k ? wide.second : wide.first), shift);
    vst1q_s32(sums + k * 8, vaddw_s16(vld1q_s32(sums + k * 8), vget_low_s16(exact)));
    vst1q_s32(sums + k * 8 + 4, vaddw_high_s16(vld1q_s32(sums + k * 8 + 4), exact));
  }
}

// The subset sums of four activations: 16 low parts of 5 bits, then 16 high parts. Groups are even in number.
static void make_tables(const int8_t* x, int64_t groups, uint8_t* tables) {
  static const int16_t bits[3][8] = {{0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 0, 0, 1, 1}, {0, 0, 0, 0, 1, 1, 1, 1}};
  const int16x8_t first = vld1q_s16(bits[0]), second = vld1q_s16(bits[1]), third = vld1q_s16(bits[2]);
  const auto make = [&](int16x4_t four) {
    int16x8_t none = vmlaq_lane_s16(vdupq_n_s16(512), first, four, 0);
    none = vmlaq_lane_s16(vmlaq_lane_s16(none, second, four, 1), third, four, 2);
    const int16x8_t fourth = vaddq_s16(none, vdupq_lane_s16(four, 3));
    vst1q_u8(tables, vandq_u8(vuzp1q_u8((uint8x16_t)none, (uint8x16_t)fourth), vdupq_n_u8(31)));
    vst1q_u8(tables + 16, vshrn_high_n_u16(vshrn_n_u16((uint16x8_t)none, 5), (uint16x8_t)fourth, 5));
    tables += 32;
  };
  for (int64_t g = 0; g < groups; g += 2) {
    const int16x8_t eight = vmovl_s8(vld1_s8(x + 4 * g));
    make(vget_low_s16(eight));
    make(vget_high_s16(eight));
  }
}

#ifdef DOTPROD
constexpr int DOT_ROWS = 6;

// sums[M][4][4] += 16 rows of codes times M rows of activations, of which values hold 16: the four of number LANE.
template <int LANE, int M>
__attribute__((always_inline)) static inline void dot_lane(const uint8_t* codes, const int8x16_t (&values)[M], int32x4_t (&sum)[M][4]) {
#pragma GCC unroll 2
  for (int p = 0; p < 4; p += 2) {
    const int8x16_t c0 = vld1q_s8((const int8_t*)codes + p * 16), c1 = vld1q_s8((const int8_t*)codes + p * 16 + 16);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
      sum[i][p] = vdotq_laneq_s32(sum[i][p], c0, values[i], LANE);
      sum[i][p + 1] = vdotq_laneq_s32(sum[i][p + 1], c1, values[i], LANE);
      HOLD(sum[i][p], sum[i][p + 1]);
    }
  }
}

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations: sdot, four products in a lane.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int, int32_t* sums) {
  int32x4_t sum[M][4];
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) sum[i][p] = vld1q_s32(sums + i * TILE + p * 4);
  for (int64_t q = 0; q < quads; q += 4, codes += 256) {
    int8x16_t values[M];
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) values[i] = vld1q_s8(x + i * stride + q * 4);
    dot_lane<0>(codes, values, sum);
    dot_lane<1>(codes + 64, values, sum);
    dot_lane<2>(codes + 128, values, sum);
    dot_lane<3>(codes + 192, values, sum);
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) vst1q_s32(sums + i * TILE + p * 4, sum[i][p]);
}
#else
constexpr int DOT_ROWS = 3;

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations. Products add up in 16 bits for as long
// as codes below `levels` cannot overflow them.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  const int64_t safe = 32767 / (128 * (levels - 1));
  for (int64_t start = 0; start < quads; start += safe) {
    const int64_t end = start + safe < quads ? start + safe : quads;
    int16x8_t sum[M][4][2];
#pragma GCC unroll 3
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) sum[i][p][0] = sum[i][p][1] = vdupq_n_s16(0);
    for (int64_t q = start; q < end; ++q) {
      int8x16_t values[M];
#pragma GCC unroll 3
      for (int i = 0; i < M; ++i) values[i] = (int8x16_t)vld1q_dup_s32((const int32_t*)(x + i * stride + q * 4));
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const int8x16_t c = vld1q_s8((const int8_t*)codes + q * 64 + p * 16);
#pragma GCC unroll 3
        for (int i = 0; i < M; ++i) {
          sum[i][p][0] = vmlal_s8(sum[i][p][0], vget_low_s8(c), vget_low_s8(values[i]));
          sum[i][p][1] = vmlal_high_s8(sum[i][p][1], c, values[i]);
          HOLD(sum[i][p][0], sum[i][p][1]);
        }
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        int32_t* to = sums + i * TILE + p * 4;
        const int32x4_t rows = vpaddq_s32(vpaddlq_s16(sum[i][p][0]), vpaddlq_s16(sum[i][p][1]));
        vst1q_s32(to, vaddq_s32(vld1q_s32(to), rows));
      }
  }
}
#endif

template <int M>
static void dot_rows(int64_t m, const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  if (m >= M) return dot_panel<M>(codes, x, stride, quads, levels, sums);
  if constexpr (M > 1) dot_rows<M - 1>(m, codes, x, stride, quads, levels, sums);
}

#ifdef I8MM
// The same for 2 * PAIRS rows of activations: smmla, two rows of codes times two of activations, eight columns at once.
template <int PAIRS>
static void dot_pairs(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int32_t* sums) {
  int32x4_t sum[PAIRS][8];
#pragma GCC unroll 3
  for (int i = 0; i < PAIRS; ++i)
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p) {
      const int32_t* from = sums + 2 * i * TILE + p * 2;
      sum[i][p] = vcombine_s32(vld1_s32(from), vld1_s32(from + TILE));
    }
  for (int64_t q = 0; q < quads; q += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, codes += 128) {
      int8x16_t values[PAIRS];
#pragma GCC unroll 3
      for (int i = 0; i < PAIRS; ++i) {
        const int8_t* from = x + 2 * i * stride + q * 4 + half * 8;
        values[i] = vcombine_s8(vld1_s8(from), vld1_s8(from + stride));
      }
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const int32x4_t even = vld1q_s32((const int32_t*)(codes + p * 16)), odd = vld1q_s32((const int32_t*)(codes + 64 + p * 16));
        const int8x16_t first = (int8x16_t)vzip1q_s32(even, odd), second = (int8x16_t)vzip2q_s32(even, odd);
#pragma GCC unroll 3
        for (int i = 0; i < PAIRS; ++i) {
          sum[i][2 * p] = vmmlaq_s32(sum[i][2 * p], values[i], first);
          sum[i][2 * p + 1] = vmmlaq_s32(sum[i][2 * p + 1], values[i], second);
          HOLD(sum[i][2 * p], sum[i][2 * p + 1]);
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int i = 0; i < PAIRS; ++i)
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p) {
      int32_t* to = sums + 2 * i * TILE + p * 2;
      vst1_s32(to, vget_low_s32(sum[i][p]));
      vst1_s32(to + TILE, vget_high_s32(sum[i][p]));
    }
}
#endif

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns, a multiple of 16.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int levels, int32_t* sums) {
  for (int p = 0; p < 4; ++p, codes += panel, sums += 16) {
    int64_t r = 0;
#ifdef I8MM
    for (; r + 6 <= rows; r += 6) dot_pairs<3>(codes, x + r * stride, stride, quads, sums + r * TILE);
    if (r + 4 <= rows) {
      dot_pairs<2>(codes, x + r * stride, stride, quads, sums + r * TILE);
      r += 4;
    } else if (r + 2 <= rows) {
      dot_pairs<1>(codes, x + r * stride, stride, quads, sums + r * TILE);
      r += 2;
    }
#endif
    for (; r < rows; r += DOT_ROWS) dot_rows<DOT_ROWS>(rows - r, codes, x + r * stride, stride, quads, levels, sums + r * TILE);
  }
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"
