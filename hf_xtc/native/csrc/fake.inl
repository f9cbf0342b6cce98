// Fake-quantization in one pass, where PyTorch's operations take four to eight: results are bitwise equal to theirs. So
// nothing is summed here, no division becomes a product, and NaN, infinities and the sign of zero propagate as there.
// Included after kernels.inl.

namespace xtc {
namespace VARIANT {

typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class N>
static inline Floats read(const float* from, N lanes) {
  return load_part<Floats>(from, lanes);
}

static inline Floats widen(Halves v) { return (Floats)(__builtin_convertvector(v, Ints) << 16); }
static inline Floats read(const uint16_t* from, Whole) { return widen(load<Halves>(from)); }
static inline Floats read(const uint16_t* from, int64_t lanes) { return widen(load_part<Halves>(from, lanes)); }

template <class N>
static inline void write(float* to, Floats v, N lanes) {
  store_part(to, v, lanes);
}

// bfloat16, rounded half to even.
template <class N>
static inline void write(uint16_t* to, Floats v, N lanes) {
  const Words bits = (Words)v;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = v == v ? rounded : Words{} + 0x7fc0;
  const Halves halves = __builtin_convertvector(rounded, Halves);
  memcpy(to, &halves, lanes * sizeof(uint16_t));
}

// f(index, lanes) over the numbers `from` to `to`.
template <class F>
static inline void each_part(int64_t from, int64_t to, F f) {
  int64_t i = from;
  for (; i + LANES <= to; i += LANES) f(i, Whole{});
  if (i < to) f(i, to - i);
}

// Rounds half to even, for magnitudes below 2**22; zeros keep their sign.
static inline Floats rounded(Floats v) {
  const Ints sign = (Ints)v & INT32_MIN;
  return (Floats)((Ints)(magnitude(v) + 8388608.0f - 8388608.0f) | sign);
}

// One token on symmetric levels: scale max|x| / half, values in [-half, half - 1]. Magnitudes are compared as
// integers, which gives the same order, with NaN the largest.
template <class T>
static void fake_token(const T* x, int64_t n, float half, T* out) {
  Ints most{};
  each_part(0, n, [&](int64_t i, auto lanes) {
    const Ints bits = (Ints)magnitude(read(x + i, lanes));
    most = bits > most ? bits : most;
  });
  int32_t largest = 0;
  for (int i = 0; i < LANES; ++i) largest = most[i] > largest ? most[i] : largest;
  float scale;
  memcpy(&scale, &largest, sizeof scale);
  scale /= half;
  const float step = scale == 0.0f ? 1.0f : scale;
  const Floats low = splat(-half), high = splat(half - 1);
  each_part(0, n, [&](int64_t i, auto lanes) {
    Floats v = rounded(read(x + i, lanes) / step);
    v = v < low ? low : v;
    v = v > high ? high : v;
    write(out + i, v * scale, lanes);
  });
}

static void fake_binary(const Fake& f, int64_t group, int64_t from, int64_t to) {
  const float doubled = 2.0f * f.scale[group];  // in the decoder's order: it may overflow to infinity
  const Floats plus = splat(0.5f * doubled), minus = splat(-0.5f * doubled);
  const float* x = (const float*)f.values + group * f.size;
  float* out = (float*)f.out + group * f.size;
  each_part(from, to, [&](int64_t i, auto lanes) {
    const Floats v = read(x + i, lanes);
    write(out + i, v >= 0.0f ? plus : minus, lanes);
  });
}

static void fake_ternary(const Fake& f, int64_t group, int64_t from, int64_t to) {
  const float scale = f.scale[group];
  const Floats plus = splat(scale), minus = splat(-scale), zero = splat(0.0f * scale);
  const Floats above = splat(f.threshold[group]), below = splat(-f.threshold[group]);
  const float* x = (const float*)f.values + group * f.size;
  float* out = (float*)f.out + group * f.size;
  each_part(from, to, [&](int64_t i, auto lanes) {
    const Floats v = read(x + i, lanes);
    const Floats rest = v < below ? minus : zero;
    write(out + i, v > above ? plus : rest, lanes);
  });
}

// Magnitudes up to the threshold become zeros (or NaN, as infinity times 0 is); the others are counted.
static void keep(const Fake& f, int64_t group) {
  const Floats threshold = splat(f.threshold[group]);
  const float* x = (const float*)f.values + group * f.size;
  float* out = (float*)f.out + group * f.size;
  Ints count{};
  each_part(0, f.size, [&](int64_t i, auto lanes) {
    const Floats v = read(x + i, lanes);
    const Ints kept = v > threshold;
    count -= kept;
    for (int64_t j = lanes; j < LANES; ++j) count[j] += kept[j];
    write(out + i, v * (Floats)(kept & 0x3f800000), lanes);
  });
  int64_t total = 0;
  for (int i = 0; i < LANES; ++i) total += count[i];
  f.count[group] = total;
}

// body(group, from, to) for all groups in parts of up to `part` numbers. At most one thread per GRAIN numbers, as in
// PyTorch.
template <class F>
static void spread(const Fake& f, int64_t part, const Threads& threads, F body) {
  constexpr int64_t GRAIN = 32768;
  const int64_t cuts = (f.size + part - 1) / part, parts = f.groups * cuts;
  const int64_t block = f.size < GRAIN ? GRAIN / f.size : 1, blocks = (parts + block - 1) / block;
  const auto piece = [&](int64_t b, int64_t) {
    for (int64_t p = b * block; p < parts && p < (b + 1) * block; ++p) {
      const int64_t from = p % cuts * part;
      body(p / cuts, from, from + part < f.size ? from + part : f.size);
    }
  };
  Threads few = threads;
  few.number = blocks < few.number ? blocks : few.number;
  with_crew(few, [&](Crew& crew) { crew.for_each(blocks, piece); });
}

template <class T>
static void fake_tokens(const Fake& f, const Threads& threads) {
  spread(f, f.size, threads, [&](int64_t token, int64_t, int64_t) {
    fake_token((const T*)f.values + token * f.size, f.size, f.half, (T*)f.out + token * f.size);
  });
}

static void fake(const Fake& f, const Threads& threads) {
  constexpr int64_t PART = 32768;
  if (f.kind == BINARY) spread(f, PART, threads, [&](int64_t g, int64_t from, int64_t to) { fake_binary(f, g, from, to); });
  if (f.kind == TERNARY) spread(f, PART, threads, [&](int64_t g, int64_t from, int64_t to) { fake_ternary(f, g, from, to); });
  if (f.kind == KEPT) spread(f, f.size, threads, [&](int64_t g, int64_t, int64_t) { keep(f, g); });
  if (f.kind == FLOAT_TOKENS) fake_tokens<float>(f, threads);
  if (f.kind == BFLOAT16_TOKENS) fake_tokens<uint16_t>(f, threads);
}

}  // namespace VARIANT
}  // namespace xtc
