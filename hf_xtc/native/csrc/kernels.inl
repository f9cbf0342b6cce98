// The operator, written once for every instruction set. A variant defines, in namespace VARIANT and before including this:
//   VECTOR_BYTES width of a float vector
//   MAX_ROWS     rows of activations per block of work
//   dot          BYTES codes of one tile times rows of activations
//   LOOKUP_ROWS  rows that `lookup` (lookup.inl, which a variant includes too) takes at once, or 0 where NIBBLES are
//                expanded to BYTES first
//   MULTIPLIES_PAIRS  whether it has `dot_two_bits`, the same for PAIRS codes; else these are expanded to BYTES first
//   fused        a * b + c of vectors, rounded once where the instruction set can; contraction by the compiler is off,
//                so that all compilers give the same bits
//   FUSES        whether `fused` rounds once
//   SEXTET_ROWS  the same for `lookup_sextets`
//   narrow       converts 32-bit numbers of one vector to bytes (compilers would do it one by one)
// Integer sums are exact. Float steps are those of the reference, in float32: activations are divided by their scale and
// rounded half to even; exp and the normal distribution are polynomials of this project, fitted to below 1e-8.

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.hpp"
#include "pool.hpp"

namespace xtc {
namespace VARIANT {

constexpr int LANES = VECTOR_BYTES / 4;
typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));  // may overflow, as bits of NaN do

static inline Floats splat(float x) { return x - Floats{}; }  // 0 + x would lose the sign of -0
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
static inline Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

template <class V, class T>
static inline V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

// The first `lanes` elements, zeros beyond.
template <class V, class T>
static inline V load_part(const T* from, int64_t lanes) {
  V v{};
  memcpy(&v, from, (lanes < LANES ? lanes : LANES) * sizeof(T));
  return v;
}

static inline void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

// Not inlined, since taking the address of `v` would keep it in memory in the usual case, too.
static __attribute__((noinline, cold)) void store_some(float* to, Floats v, int64_t lanes) { memcpy(to, &v, lanes * sizeof(float)); }

static inline void store_part(float* to, Floats v, int64_t lanes) { lanes >= LANES ? store(to, v) : store_some(to, v, lanes); }

struct Whole {  // as many lanes as a vector has: a type, so that code for whole vectors has no branches
  constexpr operator int64_t() const { return LANES; }
};

static inline void store_part(float* to, Floats v, Whole) { store(to, v); }
template <class V>
static inline V load_part(const float* from, Whole) { return load<V>(from); }

// Calls f(index, vector, lanes) over n floats; lanes beyond the end are zero.
template <class F>
static inline void each(const float* x, int64_t n, F f) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) f(i, load<Floats>(x + i), Whole{});
  if (i < n) f(i, load_part<Floats>(x + i, n - i), n - i);
}

typedef float FourFloats __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));

template <class Half, class V>
static inline Half half_of(const V& v, int second) {
  return load<Half>((const float*)&v + second * (sizeof(Half) / 4));
}

// Half of the lanes with the other half, until one is left.
template <class F>
static inline float reduce(FourFloats v, F f) {
  return f(f(v[0], v[2]), f(v[1], v[3]));
}

#if VECTOR_BYTES >= 32
template <class F>
static inline float reduce(EightFloats v, F f) {
  return reduce(f(half_of<FourFloats>(v, 0), half_of<FourFloats>(v, 1)), f);
}
#endif

#if VECTOR_BYTES >= 64
template <class F>
static inline float reduce(Floats v, F f) {
  return reduce(f(half_of<EightFloats>(v, 0), half_of<EightFloats>(v, 1)), f);
}
#endif

static inline float sum_of(Floats v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

static inline float largest_of(Floats v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// The polynomial with these coefficients, of the highest power first.
template <int N>
static inline Floats polynomial(Floats x, const float (&coefficients)[N]) {
  Floats sum = splat(coefficients[0]);
  for (int i = 1; i < N; ++i) sum = fused(sum, x, splat(coefficients[i]));
  return sum;
}

// e**x for x <= 0.
static inline Floats exponential(Floats x) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2**23: adding it rounds to a whole number, half to even
  x = larger(x, splat(-80.0f));  // so that products with small values do not become subnormal
  Floats shifted = fused(x, splat(1.44269504f), magic);
  Floats n = shifted - magic;
  Floats f = fused(n, splat(-0.693359375f), x);  // ln 2 in two parts
  f = fused(n, splat(2.12194440e-4f), f) * 1.44269504f;
  const Floats p = polynomial(f, {1.53457425767565563e-4f, 1.33999285753816e-3f, 9.618489071726799e-3f, 5.550328642129898e-2f,
                                  2.4022646248340607e-1f, 6.931471824645996e-1f, 1.0f});
  const Words power = ((Words)shifted << 23) + 0x3f800000;
  return p * (Floats)power;
}

// 1 / x for normal x > 0, to about 1 ulp: an estimate from the bits, and Newton's method.
static inline Floats reciprocal(Floats x) {
  Floats y = (Floats)(0x7ef311c7 - (Words)x);
  for (int i = 0; i < 3; ++i) y = fused(y, fused(-x, y, splat(1.0f)), y);
  return y;
}

// x * P(N <= x): the exact GELU, by a rational function of x * x for erf(x / sqrt 2) / x (float32 rounding dominates).
static inline Floats gelu(Floats x) {
  const Floats limit = splat(3.92f);
  Floats z = smaller(larger(x * 0.70710678f, -limit), limit), t = z * z;
  const Floats p = polynomial(t, {-1.333742360998258e-8f, 4.71808834845433e-6f, 3.803810977842659e-4f, 3.832378890365362e-3f,
                                  5.427848547697067e-2f, 1.8470042943954468e-1f, 1.128379225730896f});
  const Floats q = polynomial(t, {6.342170672724023e-5f, 1.305042183957994e-3f, 1.5430981293320656e-2f,
                                  1.1377549171447754e-1f, 4.9702003598213196e-1f, 1.0f});
  return x * 0.5f * fused(z * p, reciprocal(q), splat(1.0f));
}

// A polynomial near zero, else (1 - e**(-2 |x|)) / (1 + e**(-2 |x|)); x has its sign.
static inline Floats relu(Floats x) { return x < 0.0f ? Floats{} : x; }

static inline Floats hyperbolic_tangent(Floats x) {
  const Floats m = magnitude(x), t = m * m, e = exponential(m * -2.0f);
  const Floats p = polynomial(t, {2.147515770047903e-3f, -8.182652294635773e-3f, 2.1702958270907402e-2f, -5.394720286130905e-2f,
                                  1.3333210349082947e-1f, -3.333333134651184e-1f});
  const Floats y = m < 0.625f ? fused(m * t, p, m) : (1.0f - e) / (1.0f + e);
  const Floats negative = (Floats)((Words)y | ((Words)x & 0x80000000u));
  return x == x ? negative : x;
}

// ---- Rows of activations in 8 bits --------------------------------------------------------------------------------

struct Quantized {  // `rows` rows of `stride` bytes; zeros beyond the columns
  int64_t rows, stride;
  int8_t* values;
  float* scale;
  uint32_t* sum;
};

// v / step as IEEE 754 rounds it, without a division per number where `fused` rounds once: a product with the reciprocal
// is within 2 ulp, a first correction by the exact remainder within 1, and a second is exact (Markstein: Computation of
// elementary functions on the IBM RISC System/6000 processor, 1990, theorem 8.2).
struct Divisor {
  Floats step, negative, inverse;
  bool plain;  // whether remainders could underflow
  explicit Divisor(float s) : step(splat(s)), negative(splat(-s)), inverse(splat(1.0f / s)), plain(!(s > 1e-24f && s < 1e24f)) {}

  template <bool PLAIN>
  Floats quotient(Floats v) const {
    if (PLAIN) return v / step;
    Floats q = v * inverse;
    q = fused(fused(q, negative, v), inverse, q);
    return fused(fused(q, negative, v), inverse, q);
  }
};

template <bool PLAIN>
static uint32_t quantize_values(const float* x, int64_t n, const Divisor& divisor, int8_t* values) {
  Words sum{};
  each(x, n, [&](int64_t i, Floats v, auto lanes) {
    Ints q = (Ints)((Words)(divisor.quotient<PLAIN>(v) + 12582912.0f) - 0x4b400000);
    q = q > 127 ? Ints{} + 127 : q;
    sum += (Words)q;
    int8_t bytes[LANES];
    narrow(q, bytes);
    memcpy(values + i, bytes, lanes);
  });
  uint32_t total = 0;
  for (int i = 0; i < LANES; ++i) total += sum[i];
  return total;
}

// Symmetric 8-bit levels of one token: scale max|x| / 128, values round(x / scale) in [-128, 127]. A row that holds NaN
// or infinity gets scale NaN, as in the reference. Magnitudes are compared as integers, which gives the same order, with
// NaN the largest.
static void quantize_row(const float* x, int64_t n, Quantized& to, int64_t row) {
  Ints most{};
  each(x, n, [&](int64_t, Floats v, auto) {
    const Ints bits = (Ints)magnitude(v);
    most = bits > most ? bits : most;
  });
  int32_t largest = 0;
  for (int i = 0; i < LANES; ++i) largest = most[i] > largest ? most[i] : largest;
  float scale;
  memcpy(&scale, &largest, sizeof scale);
  scale = largest < 0x7f800000 ? scale / 128.0f : __builtin_nanf("");
  const Divisor divisor(scale == 0.0f ? 1.0f : scale);
  int8_t* values = to.values + row * to.stride;
  const bool plain = !FUSES || divisor.plain;
  to.scale[row] = scale;
  to.sum[row] = plain ? quantize_values<true>(x, n, divisor, values) : quantize_values<false>(x, n, divisor, values);
  memset(values + n, 0, to.stride - n);
}

// ---- Codes times activations --------------------------------------------------------------------------------------

static void make_tables(const int8_t* x, int64_t groups, uint8_t* tables);
static void make_sextet_tables(const int8_t* x, int64_t groups, uint8_t* tables);
static void dot_two_bits(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, bool add, int32_t* sums);
template <int M>
static void lookup(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums);
template <int M>
static void lookup_sextets(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums);

constexpr int64_t CHUNK = 768;  // columns whose tables or codes are worked on at a time

// Codes looked up by fours of columns (NIBBLES) or by sixes (SEXTETS). CHUNK is a multiple of STEP.
struct Fours {
  static constexpr int64_t ROWS = LOOKUP_ROWS, COLUMNS = 4, TABLE = 32, STEP = COLUMN_STEP, CHUNK = VARIANT::CHUNK;
  static constexpr int64_t column_bytes(int64_t columns) { return columns * (TILE / 8); }
  static void make(const int8_t* x, int64_t groups, uint8_t* tables) { make_tables(x, groups, tables); }
  template <int M>
  static void look_up(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
    lookup<M>(codes, tables, stride, groups, sums);
  }
};

struct Sixes {
  static constexpr int64_t ROWS = SEXTET_ROWS, COLUMNS = 6, TABLE = 128, STEP = SEXTET_STEP, CHUNK = 240;
  static constexpr int64_t column_bytes(int64_t columns) { return columns / 6 * TILE; }
  static void make(const int8_t* x, int64_t groups, uint8_t* tables) { make_sextet_tables(x, groups, tables); }
  template <int M>
  static void look_up(const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
    lookup_sextets<M>(codes, tables, stride, groups, sums);
  }
};

// Bytes of a row of activations, zeros behind its columns included: tables of sixes read 8 bytes at a time.
static int64_t stride_of(int64_t columns) { return round_up(columns, COLUMN_STEP) + (SEXTET_ROWS > 0 ? COLUMN_STEP : 0); }

struct Scratch {
  Quantized quantized;
  uint8_t* tables;  // LOOKUP_ROWS * CHUNK / 4 * 32; those of sixes are smaller
  uint8_t* codes;   // TILE * CHUNK
  int32_t* sums;    // LOOKUP_ROWS * widest output, or rows * TILE
  float *first, *second, *third;
};

// BYTES codes of one tile, columns `from` to `to`, written to `out`, or in place if the layout is BYTES.
static const uint8_t* tile_bytes(const Weight& w, int64_t tile, int64_t from, int64_t to, uint8_t* out, int64_t* panel) {
  const int64_t columns = round_up(w.columns, COLUMN_STEP);
  if (w.layout == BYTES) {
    *panel = columns * 16;
    return w.codes + tile * TILE * columns + from * 16;
  }
  const int64_t quads = (to - from) / 4;
  *panel = quads * 64;
  if (w.layout == PAIRS) {
    const uint8_t* source = w.codes + (tile * columns + from) * 16;
    for (int64_t i = 0; i < *panel; i += VECTOR_BYTES)
      for (int p = 0; p < 4; ++p) {
        const Words codes = load<Words>(source + i) >> (2 * p) & 0x03030303;
        memcpy(out + p * *panel + i, &codes, VECTOR_BYTES);
      }
    return out;
  }
  for (int p = 0; p < 4; ++p)
    for (int64_t q = 0; q < quads; ++q) {
      uint8_t* target = out + p * *panel + q * 64;
      if (w.layout == SEXTETS) {
        const int64_t groups = round_up(w.columns, SEXTET_STEP) / 6;
        for (int k = 0; k < 4; ++k) {
          const int64_t column = from + q * 4 + k;
          const uint8_t* source = w.codes + (tile * groups + column / 6) * TILE + p * 16;
          for (int j = 0; j < 16; ++j) target[j * 4 + k] = column < w.columns ? (source[j] >> SEXTET_BIT[column % 6]) & 1 : 0;
        }
      } else {
        const int64_t group = from / 4 + q;
        const uint8_t* source = w.codes + (tile * columns / 8 + group / 2) * TILE + p * 16;
        const int shift = group % 2 * 4;
        for (int j = 0; j < 16; ++j)
          for (int k = 0; k < 4; ++k) target[j * 4 + k] = (source[j] >> (shift + k)) & 1;
      }
    }
  return out;
}

template <class Kind, int M>
static void lookup_rows(int m, const uint8_t* codes, const uint8_t* tables, int64_t stride, int64_t groups, int32_t* sums) {
  if constexpr (M > 0) {
    if (m == M) return Kind::template look_up<M>(codes, tables, stride, groups, sums);
    lookup_rows<Kind, M - 1>(m, codes, tables, stride, groups, sums);
  }
}

// Columns worked on at a time: equal parts of at most CHUNK.
template <class Kind>
static int64_t chunk_of(int64_t columns) {
  const int64_t chunks = (columns + Kind::CHUNK - 1) / Kind::CHUNK;
  return round_up((columns + chunks - 1) / chunks, Kind::STEP);
}

// Codes are looked up for a few rows at a time: their tables stay in the L1 cache, the codes of a weight in L2.
template <class Kind, class F>
static void multiply_by_lookup(const Weight& w, const Quantized& x, int64_t first_tile, int64_t last_tile, Scratch& s, F finish) {
  const int64_t columns = round_up(w.columns, Kind::STEP), chunk = chunk_of<Kind>(columns);
  for (int64_t r = 0; r < x.rows; r += Kind::ROWS) {
    const int m = x.rows - r < Kind::ROWS ? x.rows - r : Kind::ROWS;
    memset(s.sums, 0, (last_tile - first_tile) * m * TILE * sizeof(int32_t));
    for (int64_t from = 0; from < columns; from += chunk) {
      const int64_t groups = ((from + chunk < columns ? from + chunk : columns) - from) / Kind::COLUMNS, size = groups * Kind::TABLE;
      for (int i = 0; i < m; ++i) Kind::make(x.values + (r + i) * x.stride + from, groups, s.tables + i * size);
      for (int64_t tile = first_tile; tile < last_tile; ++tile)
        lookup_rows<Kind, Kind::ROWS>(m, w.codes + Kind::column_bytes(tile * columns + from), s.tables, size, groups,
                                      s.sums + (tile - first_tile) * m * TILE);
    }
    for (int64_t tile = first_tile; tile < last_tile; ++tile)
      for (int i = 0; i < m; ++i) finish(r + i, tile * TILE, s.sums + ((tile - first_tile) * m + i) * TILE);
  }
}

// BYTES codes do not fit the L2 cache: each tile is used for all rows of the block before the next.
template <class F>
static void multiply_by_dot(const Weight& w, const Quantized& x, int64_t first_tile, int64_t last_tile, Scratch& s, F finish) {
  const int64_t columns = round_up(w.columns, COLUMN_STEP), chunk = chunk_of<Fours>(columns);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    for (int64_t from = 0; from < columns; from += chunk) {
      const int64_t to = from + chunk < columns ? from + chunk : columns, quads = (to - from) / 4;
      if constexpr (MULTIPLIES_PAIRS)
        if (w.layout == PAIRS) {
          dot_two_bits(w.codes + (tile * columns + from) * 16, x.values + from, x.stride, x.rows, quads, from > 0, s.sums);
          continue;
        }
      if (from == 0) memset(s.sums, 0, x.rows * TILE * sizeof(int32_t));
      int64_t panel = 0;
      const uint8_t* codes = tile_bytes(w, tile, from, to, s.codes, &panel);
      dot(codes, panel, x.values + from, x.stride, x.rows, quads, w.levels, s.sums);
    }
    for (int64_t r = 0; r < x.rows; ++r) finish(r, tile * TILE, s.sums + r * TILE);
  }
}

// finish(row, first, sums): called for each row of activations and each tile, with TILE exact sums of codes times values.
template <class F>
static void multiply(const Weight& w, const Quantized& x, int64_t first_tile, int64_t last_tile, Scratch& s, F finish) {
  if constexpr (SEXTET_ROWS > 0)
    if (w.layout == SEXTETS) return multiply_by_lookup<Sixes>(w, x, first_tile, last_tile, s, finish);
  if constexpr (LOOKUP_ROWS > 0)
    if (w.layout == NIBBLES) return multiply_by_lookup<Fours>(w, x, first_tile, last_tile, s, finish);
  multiply_by_dot(w, x, first_tile, last_tile, s, finish);
}

// activation(x) @ weight.T + bias for one block of rows; put(row, column, values, lanes) takes the result.
template <class F>
static void linear_block(const Weight& w, const Quantized& x, int64_t first_tile, int64_t last_tile, Scratch& s, F put) {
  const int log_alpha = w.levels == 2;
  const uint32_t beta = w.levels == 2 ? 1 : w.levels / 2;
  multiply(w, x, first_tile, last_tile, s, [&](int64_t row, int64_t first, const int32_t* sums) {
    const uint32_t offset = beta * x.sum[row];
    const float scale = x.scale[row];
    for (int64_t j = 0; j < TILE && first + j < w.rows; j += LANES) {
      const Floats exact = __builtin_convertvector((Ints)((load<Words>(sums + j) << log_alpha) - offset), Floats);
      Floats y = fused(exact, load<Floats>(w.scale + first + j) * scale, load<Floats>(w.bias + first + j));
      put(row, first + j, y, w.rows - first - j);
    }
  });
}

static inline int64_t tiles_of(const Weight& w) { return round_up(w.rows, TILE) / TILE; }

// ---- Attention and LayerNorm --------------------------------------------------------------------------------------

// c[M][columns] = a[M][depth] @ b[depth][columns]; columns is a multiple of 2 * LANES.
template <int M>
static void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, int64_t columns, float* c, int64_t c_stride) {
  for (int64_t j = 0; j < columns; j += 2 * LANES) {
    Floats sum[M][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const Floats b0 = load<Floats>(b + k * b_stride + j), b1 = load<Floats>(b + k * b_stride + j + LANES);
      for (int i = 0; i < M; ++i) {
        const Floats factor = splat(a[i * a_stride + k]);
        sum[i][0] = fused(b0, factor, sum[i][0]);
        sum[i][1] = fused(b1, factor, sum[i][1]);
        HOLD(sum[i][0], sum[i][1]);
      }
    }
    for (int i = 0; i < M; ++i) {
      store(c + i * c_stride + j, sum[i][0]);
      store(c + i * c_stride + j + LANES, sum[i][1]);
    }
  }
}

constexpr int ATTENTION_ROWS = 6;

template <int M>
static void product_rows(int m, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, int64_t columns, float* c, int64_t c_stride) {
  if (m == M) return product<M>(a, a_stride, b, b_stride, depth, columns, c, c_stride);
  if constexpr (M > 1) product_rows<M - 1>(m, a, a_stride, b, b_stride, depth, columns, c, c_stride);
}

// Softmax of some queries' scores without the division by their sums, in place; factors: one over each sum. Several
// rows at once, since each step of one row waits for the one before.
template <int M>
static void softmax(float* scores, int64_t tokens, int64_t padded, float scaling, float* factors) {
  const int64_t whole = tokens / LANES * LANES;
  Floats top[M], sum[M];
  for (int i = 0; i < M; ++i) top[i] = splat(-3.4e38f), sum[i] = Floats{};
  for (int64_t t = 0; t < whole; t += LANES)
    for (int i = 0; i < M; ++i) top[i] = larger(top[i], load<Floats>(scores + i * padded + t));
  float highest[M];
  for (int i = 0; i < M; ++i) {
    highest[i] = largest_of(top[i]);
    for (int64_t t = whole; t < tokens; ++t) highest[i] = scores[i * padded + t] > highest[i] ? scores[i * padded + t] : highest[i];
  }
  const auto exponentials = [&](int64_t t, int i) { return exponential((load<Floats>(scores + i * padded + t) - highest[i]) * scaling); };
  for (int64_t t = 0; t < whole; t += LANES)
    for (int i = 0; i < M; ++i) {
      const Floats e = exponentials(t, i);
      store(scores + i * padded + t, e);
      sum[i] += e;
    }
  for (int i = 0; i < M; ++i) {
    if (whole < padded) {
      const Floats e = exponentials(whole, i);
      memset(scores + i * padded + whole, 0, (padded - whole) * sizeof(float));
      store_part(scores + i * padded + whole, e, tokens - whole);
      sum[i] += load<Floats>(scores + i * padded + whole);
    }
    factors[i] = 1.0f / sum_of(sum[i]);
  }
}

template <int M>
static void softmax_rows(int m, float* scores, int64_t tokens, int64_t padded, float scaling, float* factors) {
  if (m == M) return softmax<M>(scores, tokens, padded, scaling, factors);
  if constexpr (M > 1) softmax_rows<M - 1>(m, scores, tokens, padded, scaling, factors);
}

// Floats per row of keys: whole vectors, but no multiple of 64: whole pages would map all rows to a few cache sets.
static int64_t odd_stride(int64_t tokens) {
  const int64_t padded = round_up(tokens, 2 * LANES);
  return padded % 64 ? padded : padded + 2 * LANES;
}

// One head of one sequence. qkv: (tokens, 3 * hidden), the head's query at its start; distances: null, or what is added to
// scores, at distance 0; out: (tokens, hidden).
static void attend(const float* qkv, int64_t tokens, int64_t hidden, int64_t size, const float* distances, float* scratch, float* out) {
  const int64_t padded = odd_stride(tokens), wide = round_up(size, 2 * LANES), stride = 3 * hidden;
  float *keys = scratch, *values = keys + size * padded, *scores = values + tokens * wide;
  float* result = scores + ATTENTION_ROWS * padded;
  memset(keys, 0, size * padded * sizeof(float));
  for (int64_t first = 0; first < size; first += 16)  // a few rows of the transpose at a time, each a stream of writes
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t d = first; d < size && d < first + 16; ++d) keys[d * padded + t] = qkv[t * stride + hidden + d];
  for (int64_t t = 0; t < tokens; ++t) {
    memcpy(values + t * wide, qkv + t * stride + 2 * hidden, size * sizeof(float));
    memset(values + t * wide + size, 0, (wide - size) * sizeof(float));
  }
  const float scaling = 1.0f / __builtin_sqrtf((float)size);
  for (int64_t t = 0; t < tokens; t += ATTENTION_ROWS) {
    const int m = tokens - t < ATTENTION_ROWS ? tokens - t : ATTENTION_ROWS;
    product_rows<ATTENTION_ROWS>(m, qkv + t * stride, stride, keys, padded, size, padded, scores, padded);
    float weight[ATTENTION_ROWS];
    if (distances)
      for (int i = 0; i < m; ++i) {
        float* row = scores + i * padded;
        each(row, tokens, [&](int64_t k, Floats v, auto lanes) {
          store_part(row + k, fused(v, splat(scaling), load_part<Floats>(distances + k - (t + i), lanes)), lanes);
        });
      }
    softmax_rows<ATTENTION_ROWS>(m, scores, tokens, padded, distances ? 1.0f : scaling, weight);
    product_rows<ATTENTION_ROWS>(m, scores, padded, values, wide, tokens, wide, result, wide);
    for (int i = 0; i < m; ++i)
      each(result + i * wide, size, [&](int64_t d, Floats v, auto lanes) {
        store_part(out + (t + i) * hidden + d, v * weight[i], lanes);
      });
  }
}

static int64_t attention_floats(int64_t tokens, int64_t size) {
  const int64_t padded = odd_stride(tokens), wide = round_up(size, 2 * LANES);
  return size * padded + tokens * wide + ATTENTION_ROWS * (padded + wide);
}

static void layer_norm(const float* x, int64_t n, const float* gamma, const float* beta, float epsilon, float* out) {
  const int64_t whole = n / LANES * LANES;
  Floats sum[2] = {};  // two, so that an addition need not wait for the one before
  for (int64_t i = 0; i < whole; i += LANES) {
    sum[0] += load<Floats>(x + i);
    if ((i += LANES) < whole) sum[1] += load<Floats>(x + i);
  }
  float rest = 0.0f;
  for (int64_t i = whole; i < n; ++i) rest += x[i];
  const float mean = (sum_of(sum[0] + sum[1]) + rest) / n;
  Floats squares[2] = {};
  for (int64_t i = 0; i < whole; i += LANES) {
    const Floats d = load<Floats>(x + i) - mean;
    squares[0] = fused(d, d, squares[0]);
    if ((i += LANES) < whole) {
      const Floats e = load<Floats>(x + i) - mean;
      squares[1] = fused(e, e, squares[1]);
    }
  }
  rest = 0.0f;
  for (int64_t i = whole; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / __builtin_sqrtf((sum_of(squares[0] + squares[1]) + rest) / n + epsilon);
  each(x, n, [&](int64_t i, Floats v, auto lanes) {
    store_part(out + i, fused((v - mean) * scale, load_part<Floats>(gamma + i, lanes), load_part<Floats>(beta + i, lanes)), lanes);
  });
}

// ---- Embeddings ---------------------------------------------------------------------------------------------------

// Adds one row of a table to x.
static void add_row(const Table& table, int64_t row, int64_t n, float* x) {
  if (table.levels == 0) {
    const float* from = (const float*)table.rows + row * n;
    for (int64_t i = 0; i < n; ++i) x[i] += from[i];
    return;
  }
  const int per_byte = table.levels == 2 ? 8 : table.levels == 3 ? 5 : table.levels == 16 ? 2 : 1;
  const uint8_t* from = (const uint8_t*)table.rows + row * ((n + per_byte - 1) / per_byte);
  const float scale = table.scale[row];
  if (table.levels == 2) {
    for (int64_t i = 0; i < n; i += LANES) {
      uint32_t bits = 0;
      memcpy(&bits, from + i / 8, LANES > 8 && i + 8 < n ? 2 : 1);
      bits >>= i % 8;
      Ints lane;
      for (int j = 0; j < LANES; ++j) lane[j] = 1 << j;
      Floats v = (((Ints{} + (int32_t)bits) & lane) != 0) ? splat(scale) : splat(-scale);
      store_part(x + i, load_part<Floats>(x + i, n - i) + v, n - i);
    }
    return;
  }
  const float zero = table.levels / 2;
  if (table.levels == 256)
    for (int64_t i = 0; i < n; ++i) x[i] += ((float)from[i] - zero) * scale;
  else
    for (int64_t i = 0; i < n; i += per_byte) {
      int byte = from[i / per_byte];
      for (int j = 0; j < per_byte && i + j < n; ++j, byte /= table.levels)
        x[i + j] += ((float)(byte % table.levels) - zero) * scale;
    }
}

static void embed(const Encoder& e, const Batch& b, int64_t token, float* scratch, float* out) {
  memset(scratch, 0, e.width * sizeof(float));
  add_row(e.words, b.words[token], e.width, scratch);
  if (b.types) add_row(e.types, b.types[token], e.width, scratch);
  add_row(e.positions, b.positions[token], e.width, scratch);
  layer_norm(scratch, e.width, e.embedding_gamma, e.embedding_beta, e.embedding_epsilon, out);
}

// ---- Memory -------------------------------------------------------------------------------------------

// Memory that stays with the calling thread from one call to the next, since mapping fresh pages takes longer than
// filling them; more than KEPT is given back after the call.
class Workspace {
#if defined(__wasm__)
  static constexpr size_t HUGE_PAGE = 1 << 16, KEPT = 16 << 20;  // no huge pages; memory is never given back to the page
#else
  static constexpr size_t HUGE_PAGE = 1 << 21, KEPT = 128 << 20;
#endif
  char* data = nullptr;
  size_t size = 0;

  void release() {
    free(data);
    data = nullptr;
    size = 0;
  }

 public:
#if !defined(__wasm__)  // an instance ends with all of its memory
  ~Workspace() { release(); }
#endif

  // Null if there is no memory.
  char* get(int64_t bytes) {
    if ((uint64_t)bytes > SIZE_MAX / 2) return nullptr;  // addresses may have 32 bits
    if ((size_t)bytes > size) {
      release();
      const size_t wanted = round_up(bytes + bytes / 4, HUGE_PAGE);
      data = (char*)aligned_alloc(HUGE_PAGE, wanted);
      if (!data) return nullptr;
      size = wanted;
#ifdef MADV_HUGEPAGE
      madvise(data, size, MADV_HUGEPAGE);  // attention reads rows that are pages apart
#endif
    }
    return data;
  }

  void give_back() {
    if (size > KEPT) release();
  }
};

static thread_local Workspace workspace;

// Rows per block: no more than fit the cache, and equal parts for all threads.
static int64_t block_rows(int64_t tokens, int64_t threads) {
  const int64_t blocks = round_up((tokens + MAX_ROWS - 1) / MAX_ROWS, threads);
  return (tokens + blocks - 1) / blocks;
}

static char* cut(char*& from, int64_t bytes) {
  char* piece = from;
  from += round_up(bytes, 64);
  return piece;
}

// Lays one thread's scratch out from `from` on; starting at a null pointer, `from` ends as its size.
static Scratch scratch_of(char*& from, int64_t rows, int64_t columns, int64_t outputs, int64_t hidden, int64_t inner) {
  Scratch s;
  columns = stride_of(columns);
  s.quantized = {rows, columns, (int8_t*)cut(from, rows * columns), (float*)cut(from, rows * 4), (uint32_t*)cut(from, rows * 4)};
  s.tables = (uint8_t*)cut(from, LOOKUP_ROWS * CHUNK * 8);
  s.codes = (uint8_t*)cut(from, TILE * CHUNK);
  static_assert(SEXTET_ROWS * (Sixes::CHUNK / 6) * Sixes::TABLE <= LOOKUP_ROWS * CHUNK * 8 && SEXTET_ROWS <= LOOKUP_ROWS, "");
  const int64_t looked_up = LOOKUP_ROWS * round_up(outputs, TILE), at_once = rows * TILE;
  s.sums = (int32_t*)cut(from, (looked_up > at_once ? looked_up : at_once) * 4);
  s.first = (float*)cut(from, rows * hidden * 4);
  s.second = (float*)cut(from, rows * hidden * 4);
  s.third = (float*)cut(from, rows * inner * 4);
  return s;
}

static void quantize_block(const float* x, int64_t rows, int64_t n, Quantized& to) {
  to.rows = rows;
  to.stride = stride_of(n);
  for (int64_t r = 0; r < rows; ++r) quantize_row(x + r * n, n, to, r);
}

// ---- Entry points -------------------------------------------------------------------------------------------------

static int64_t linear(const Weight& w, const float* x, int64_t tokens, float* out, const Threads& threads) {
  const int64_t number = threads.number;
  const int64_t rows = block_rows(tokens, number), blocks = (tokens + rows - 1) / rows, tiles = tiles_of(w);
  // With few rows the tiles are split over the threads as well, in parts of at least 4.
  const int64_t parts = blocks >= number ? 1 : (tiles + 3) / 4 < number ? (tiles + 3) / 4 : number;
  char* size = nullptr;
  scratch_of(size, rows, w.columns, w.rows, 0, 0);
  const int64_t bytes = number * (int64_t)size;
  char* memory = workspace.get(bytes);
  if (!memory) return bytes;
  const auto piece = [&](int64_t i, int64_t thread) {
    char* from = memory + thread * (int64_t)size;
    Scratch s = scratch_of(from, rows, w.columns, w.rows, 0, 0);
    const int64_t start = i / parts * rows, part = i % parts;
    quantize_block(x + start * w.columns, tokens - start < rows ? tokens - start : rows, w.columns, s.quantized);
    linear_block(w, s.quantized, tiles * part / parts, tiles * (part + 1) / parts, s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
      store_part(out + (start + r) * w.rows + j, y, lanes);
    });
  };
  with_crew(threads, [&](Crew& crew) { crew.for_each(blocks * parts, piece); });
  workspace.give_back();
  return 0;
}

// x @ weight.T + bias for rows of `columns` floats. Each sum runs in the same order, in whatever block its row is.
template <class F>
static void dense_block(const Dense& dense, const float* x, int64_t rows, int64_t columns, F put) {
  constexpr int AT_ONCE = 4;  // sums, which are independent of each other
  for (int64_t first = 0; first < dense.rows; first += AT_ONCE) {
    const int count = dense.rows - first < AT_ONCE ? dense.rows - first : AT_ONCE;
    const float* weight[AT_ONCE];
    for (int j = 0; j < AT_ONCE; ++j) weight[j] = dense.weight + (first + (j < count ? j : 0)) * columns;
    for (int64_t r = 0; r < rows; ++r) {
      Floats sum[AT_ONCE] = {};
      each(x + r * columns, columns, [&](int64_t i, Floats v, auto lanes) {
        for (int j = 0; j < AT_ONCE; ++j) sum[j] = fused(v, load_part<Floats>(weight[j] + i, lanes), sum[j]);
      });
      for (int j = 0; j < count; ++j) put(r, first + j, sum_of(sum[j]) + (dense.bias ? dense.bias[first + j] : 0.0f));
    }
  }
}

// The embeddings of a block of rows from `start` on, and their projection; x: hidden states.
static void embed_block(const Encoder& e, const Batch& b, int64_t start, int64_t rows, Scratch& s, float* x) {
  const bool projects = e.packed_projection || e.projection;
  float* embedded = projects ? s.second : x;
  for (int64_t r = 0; r < rows; ++r) embed(e, b, start + r, s.first, embedded + r * e.width);
  if (e.packed_projection) {
    quantize_block(embedded, rows, e.width, s.quantized);
    linear_block(*e.packed_projection, s.quantized, 0, tiles_of(*e.packed_projection), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
      store_part(x + r * e.hidden + j, y, lanes);
    });
  } else if (projects) {
    dense_block(*e.projection, embedded, rows, e.width, [&](int64_t r, int64_t j, float y) { x[r * e.hidden + j] = y; });
  }
}

// What one layer does after attention, for one block of rows; x: their hidden states, in and out.
static void feed_forward(const Encoder& e, const Layer& layer, const float* context, int64_t rows, Scratch& s, float* x) {
  const int64_t hidden = e.hidden;
  quantize_block(context, rows, hidden, s.quantized);
  linear_block(layer.attention_output, s.quantized, 0, tiles_of(layer.attention_output), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
    store_part(s.first + r * hidden + j, y + load_part<Floats>(x + r * hidden + j, lanes), lanes);
  });
  for (int64_t r = 0; r < rows; ++r)
    layer_norm(s.first + r * hidden, hidden, layer.attention_gamma, layer.attention_beta, e.attention_epsilon, s.second + r * hidden);
  quantize_block(s.second, rows, hidden, s.quantized);
  linear_block(layer.intermediate, s.quantized, 0, tiles_of(layer.intermediate), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
    store_part(s.third + r * e.intermediate + j, gelu(y), lanes);
  });
  quantize_block(s.third, rows, e.intermediate, s.quantized);
  linear_block(layer.output, s.quantized, 0, tiles_of(layer.output), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
    store_part(s.first + r * hidden + j, y + load_part<Floats>(s.second + r * hidden + j, lanes), lanes);
  });
  for (int64_t r = 0; r < rows; ++r)
    layer_norm(s.first + r * hidden, hidden, layer.output_gamma, layer.output_beta, e.attention_epsilon, x + r * hidden);
}

// One thread's scratch for blocks of `rows` rows.
static Scratch scratch_of(char*& from, int64_t rows, const Encoder& e) {
  const int64_t hidden = e.width > e.hidden ? e.width : e.hidden;
  const int64_t widest = 3 * hidden > e.intermediate ? 3 * hidden : e.intermediate;
  return scratch_of(from, rows, widest, widest, hidden, e.intermediate);
}

// Sequences `first` to `last` of a batch. x: hidden states of the whole batch.
static int64_t encode(const Encoder& e, const Batch& batch, int64_t first, int64_t last, float* x, const Threads& threads) {
  const int64_t *offsets = batch.offsets + first, begin = *offsets;
  const Batch b{last - first, batch.offsets[last] - begin, offsets, batch.words + begin, batch.positions + begin,
                batch.types ? batch.types + begin : nullptr};
  x += begin * e.hidden;
  const int64_t hidden = e.hidden, size = hidden / e.heads;
  const int64_t number = threads.number, rows = block_rows(b.num_tokens, number), blocks = (b.num_tokens + rows - 1) / rows;
  int64_t longest = 0;
  for (int64_t i = 0; i < b.num_sequences; ++i)
    if (b.offsets[i + 1] - b.offsets[i] > longest) longest = b.offsets[i + 1] - b.offsets[i];
  char* share = nullptr;
  scratch_of(share, rows, e);
  const int64_t own = (int64_t)share + round_up(attention_floats(longest, size) * 4, 64);  // bytes of one thread
  const int64_t bytes = number * own + b.num_tokens * hidden * 16 + 128;
  char* memory = workspace.get(bytes);
  if (!memory) return bytes;
  float* qkv = (float*)cut(memory, b.num_tokens * hidden * 12);
  float* context = (float*)cut(memory, b.num_tokens * hidden * 4);
  // The layers' blocks of rows and heads of sequences in turn; a block goes through all that needs no other rows at once.
  const auto rows_of = [&](int64_t l, int64_t i, int64_t thread) {
    char* from = memory + thread * own;
    Scratch s = scratch_of(from, rows, e);
    const int64_t start = i * rows, part = b.num_tokens - start < rows ? b.num_tokens - start : rows;
    float* block = x + start * hidden;
    if (l == 0)
      embed_block(e, b, start, part, s, block);
    else
      feed_forward(e, e.layers[l - 1], context + start * hidden, part, s, block);
    if (l == e.num_layers) return;
    quantize_block(block, part, hidden, s.quantized);
    linear_block(e.layers[l].qkv, s.quantized, 0, tiles_of(e.layers[l].qkv), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
      store_part(qkv + (start + r) * 3 * hidden + j, y, lanes);
    });
  };
  const auto head_of = [&](int64_t i, int64_t thread) {
    char* from = memory + thread * own;
    scratch_of(from, rows, e);
    const int64_t *sequence = b.offsets + i / e.heads, start = *sequence - begin, number = i % e.heads, head = number * size;
    const float* distances = e.distances ? e.distances + number * (2 * e.reach - 1) + e.reach - 1 : nullptr;
    attend(qkv + start * 3 * hidden + head, sequence[1] - sequence[0], hidden, size, distances, (float*)from, context + start * hidden + head);
  };
  with_crew(threads, [&](Crew& crew) {
    for (int64_t l = 0; l <= e.num_layers; ++l) {
      crew.for_each(blocks, [&](int64_t i, int64_t thread) { rows_of(l, i, thread); });
      if (l < e.num_layers) crew.for_each(b.num_sequences * e.heads, head_of);
    }
  });
  return 0;
}

// The pooler and the classifier. It is little work next to the encoder's, and one thread does it.
static int64_t run_head(const Head& head, int64_t hidden, const Batch& b, const Outputs& out) {
  if (!head.packed_pooler && !head.pooler) return 0;
  char* size = nullptr;
  scratch_of(size, MAX_ROWS, hidden, hidden, hidden, 0);
  char* memory = workspace.get((int64_t)size);
  if (!memory) return (int64_t)size;
  Scratch s = scratch_of(memory, MAX_ROWS, hidden, hidden, hidden, 0);
  for (int64_t start = 0; start < b.num_sequences; start += MAX_ROWS) {
    const int64_t rows = b.num_sequences - start < MAX_ROWS ? b.num_sequences - start : MAX_ROWS;
    float* pooled = out.pooled + start * hidden;
    for (int64_t r = 0; r < rows; ++r) memcpy(s.first + r * hidden, out.hidden + b.offsets[start + r] * hidden, hidden * 4);
    if (head.packed_pooler) {
      quantize_block(s.first, rows, hidden, s.quantized);
      linear_block(*head.packed_pooler, s.quantized, 0, tiles_of(*head.packed_pooler), s, [&](int64_t r, int64_t j, Floats y, int64_t lanes) {
        store_part(pooled + r * hidden + j, y, lanes);
      });
    } else {
      dense_block(*head.pooler, s.first, rows, hidden, [&](int64_t r, int64_t j, float y) { pooled[r * hidden + j] = y; });
    }
    each(pooled, rows * hidden, [&](int64_t i, Floats v, auto lanes) {
      store_part(pooled + i, head.activation == GELU ? gelu(v) : head.activation == RELU ? relu(v) : hyperbolic_tangent(v), lanes);
    });
    if (!head.classifier) continue;
    float* logits = out.logits + start * head.classifier->rows;
    dense_block(*head.classifier, pooled, rows, hidden, [&](int64_t r, int64_t j, float y) { logits[r * head.classifier->rows + j] = y; });
  }
  return 0;
}

// Large batches are computed in parts of about MAX_TOKENS, which bounds the workspace.
static int64_t encoder(const Encoder& e, const Batch& b, const Head& head, const Outputs& out, const Threads& threads) {
  constexpr int64_t MAX_TOKENS = 4096;
  if (b.num_tokens == 0) return 0;
  const int64_t parts = (b.num_tokens + MAX_TOKENS - 1) / MAX_TOKENS, part = (b.num_tokens + parts - 1) / parts;
  int64_t missing = 0;
  for (int64_t first = 0, last; first < b.num_sequences && !missing; first = last) {
    for (last = first + 1; last < b.num_sequences && b.offsets[last + 1] - b.offsets[first] <= part;) ++last;
    missing = encode(e, b, first, last, out.hidden, threads);
  }
  if (!missing) missing = run_head(head, e.hidden, b, out);
  workspace.give_back();
  return missing;
}

}  // namespace VARIANT
}  // namespace xtc
