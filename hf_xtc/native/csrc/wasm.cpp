// WebAssembly with vectors of 128 bits: binary codes by table lookup. No threads. web/build_wasm.sh builds it twice: for
// every engine, and with the instructions of relaxed SIMD, whose results are exact for codes and for numbers of tables.
#include "kernels.hpp"
#if defined(__wasm__)
#include <stdlib.h>
#include <string.h>
#include <wasm_simd128.h>

#define VARIANT wasm_code
#define VECTOR_BYTES 16

namespace xtc {
namespace VARIANT {

constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = false;
constexpr bool MULTIPLIES_PAIRS = false;
constexpr int SEXTET_ROWS = 0;
#if defined(__wasm_relaxed_simd__)
constexpr int LOOKUP_ROWS = 2;
constexpr int DOT_ROWS = 3;
#else
constexpr int LOOKUP_ROWS = 1;  // an engine needs a register more for i8x16.swizzle
constexpr int DOT_ROWS = 2;
#endif

template <class V>
static inline V fused(V a, V b, V c) {
  return a * b + c;
}

template <class V>
static inline void narrow(V q, int8_t* to) {
  const v128_t words = wasm_i16x8_narrow_i32x4((v128_t)q, (v128_t)q);
  wasm_v128_store32_lane(to, wasm_i8x16_narrow_i16x8(words, words), 0);
}

#if defined(__wasm_relaxed_simd__)
#define OWN_DOT_PANEL

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations: four products in a lane. Codes have at
// most 4 bits, so that all engines give the same sums.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int, int32_t* sums) {
  v128_t sum[M][4];
  for (int i = 0; i < M; ++i)
    for (int p = 0; p < 4; ++p) sum[i][p] = wasm_v128_load(sums + i * TILE + p * 4);
  for (int64_t q = 0; q < quads; ++q, codes += 64, x += 4) {
    v128_t values[M];
    for (int i = 0; i < M; ++i) values[i] = wasm_v128_load32_splat(x + i * stride);
    for (int p = 0; p < 4; ++p) {
      const v128_t c = wasm_v128_load(codes + p * 16);
      for (int i = 0; i < M; ++i) sum[i][p] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(values[i], c, sum[i][p]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int p = 0; p < 4; ++p) wasm_v128_store(sums + i * TILE + p * 4, sum[i][p]);
}
#endif

#include "bytes.inl"

#include "lookup.inl"

static inline Bytes repeat(const uint8_t* table) { return (Bytes)wasm_v128_load(table); }

static inline Bytes look_up(Bytes table, Bytes numbers) {
#if defined(__wasm_relaxed_simd__)
  return (Bytes)wasm_i8x16_relaxed_swizzle((v128_t)table, (v128_t)numbers);
#else
  return (Bytes)wasm_i8x16_swizzle((v128_t)table, (v128_t)numbers);
#endif
}

static inline void widen(Bytes low, Bytes high, Wide& sums) {
  const v128_t l = (v128_t)low, h = (v128_t)high;
  sums.first += (Shorts)wasm_u16x8_extend_low_u8x16(l) + ((Shorts)wasm_u16x8_extend_low_u8x16(h) << 5);
  sums.second += (Shorts)wasm_u16x8_extend_high_u8x16(l) + ((Shorts)wasm_u16x8_extend_high_u8x16(h) << 5);
}

static inline void add_words(const Wide& wide, int offset, int32_t* sums) {
  for (int k = 0; k < 2; ++k) {
    const v128_t exact = wasm_i16x8_sub((v128_t)(k ? wide.second : wide.first), wasm_i16x8_splat((int16_t)offset));
    int32_t* to = sums + k * 8;
    wasm_v128_store(to, wasm_i32x4_add(wasm_v128_load(to), wasm_i32x4_extend_low_i16x8(exact)));
    wasm_v128_store(to + 4, wasm_i32x4_add(wasm_v128_load(to + 4), wasm_i32x4_extend_high_i16x8(exact)));
  }
}

// The subset sums of four activations: 16 low parts of 5 bits, then 16 high parts.
static void make_tables(const int8_t* x, int64_t groups, uint8_t* tables) {
  const v128_t first = wasm_i16x8_const(0, -1, 0, -1, 0, -1, 0, -1), second = wasm_i16x8_const(0, 0, -1, -1, 0, 0, -1, -1);
  const v128_t third = wasm_i16x8_const(0, 0, 0, 0, -1, -1, -1, -1), offset = wasm_i16x8_const_splat(512), low = wasm_i16x8_const_splat(31);
  for (int64_t g = 0; g < groups; ++g, x += 4, tables += 32) {
    const v128_t a = wasm_v128_and(wasm_i16x8_splat(x[0]), first), b = wasm_v128_and(wasm_i16x8_splat(x[1]), second);
    const v128_t c = wasm_v128_and(wasm_i16x8_splat(x[2]), third);
    const v128_t none = wasm_i16x8_add(wasm_i16x8_add(a, b), wasm_i16x8_add(c, offset)), fourth = wasm_i16x8_add(none, wasm_i16x8_splat(x[3]));
    wasm_v128_store(tables, wasm_u8x16_narrow_i16x8(wasm_v128_and(none, low), wasm_v128_and(fourth, low)));
    wasm_v128_store(tables + 16, wasm_u8x16_narrow_i16x8(wasm_u16x8_shr(none, 5), wasm_u16x8_shr(fourth, 5)));
  }
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

namespace xtc {
const Variant wasm = {"wasm", wasm_code::linear, wasm_code::encoder, nullptr};
}

// x @ weight.T + bias for `rows` rows of `columns` floats: the head on tokens.
extern "C" void xtc_dense(const xtc::Dense* dense, const float* x, int64_t rows, int64_t columns, float* out) {
  xtc::wasm_code::dense_block(*dense, x, rows, columns, [&](int64_t r, int64_t j, float y) { out[r * dense->rows + j] = y; });
}
#endif
