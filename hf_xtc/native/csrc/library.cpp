// The C interface: chooses a variant, and lays codes out for it.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

using namespace xtc;

#define API extern "C" __attribute__((visibility("default")))

#if defined(__aarch64__)
enum Feature { DOTPROD, I8MM };

static bool has(Feature feature) {
#if defined(__linux__)
  return feature == DOTPROD ? getauxval(AT_HWCAP) >> 20 & 1 : getauxval(AT_HWCAP2) >> 13 & 1;  // HWCAP_ASIMDDP, HWCAP2_I8MM
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  const char* name = feature == DOTPROD ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
  // macOS before 12 knows no such names; all Apple silicon has dot products.
  return sysctlbyname(name, &found, &size, nullptr, 0) ? feature == DOTPROD : found;
#else
  return false;
#endif
}
#endif

static bool runs(const Variant& v) {
#if defined(__wasm__)
  return true;
#endif
  if (!v.name) return false;
#if defined(__aarch64__)
  if (&v == &neon) return true;
  if (&v == &neon_dotprod) return has(DOTPROD);
  if (&v == &neon_i8mm) return has(DOTPROD) && has(I8MM);
#endif
#if defined(__x86_64__)
  if (&v == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&v == &avx512_vbmi && !__builtin_cpu_supports("avx512vbmi")) return false;
  if (&v == &avx512 || &v == &avx512_vbmi)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
  return &v == &portable;
}

// Version of this interface, as in native/library.py: raise it with every change of a function or a struct.
API int xtc_interface() { return 8; }

#if defined(__wasm__)
static const Variant* const VARIANTS[] = {&wasm};
#else
static const Variant* const VARIANTS[] = {&avx512_vbmi, &avx512, &avx2, &neon_i8mm, &neon_dotprod, &neon, &portable};
#endif

// Name of variant `index`, fastest first, where this processor runs it; "" where it does not; null past the last.
API const char* xtc_variant(int index) {
  if (index < 0 || index >= (int)(sizeof VARIANTS / sizeof *VARIANTS)) return nullptr;
  return runs(*VARIANTS[index]) ? VARIANTS[index]->name : "";
}

API int64_t xtc_layout_bytes(int32_t layout, int64_t rows, int64_t columns) {
  if (layout == SEXTETS) return round_up(rows, TILE) * (round_up(columns, SEXTET_STEP) / 6);
  const int64_t codes = round_up(rows, TILE) * round_up(columns, COLUMN_STEP);
  return layout == BYTES ? codes : layout == PAIRS ? codes / 4 : codes / 8;
}

// Calls put(column, code) for each code of a row. `Levels` is a constant, since divisions by a variable are slow.
template <int Levels, class F>
static void each_code(const uint8_t* packed, int64_t columns, F put) {
  constexpr int PER_BYTE = Levels == 2 ? 8 : Levels == 3 ? 5 : 2;
  for (int64_t c = 0; c < columns;) {
    int byte = *packed++;
    for (int d = 0; d < PER_BYTE && c < columns; ++d, ++c, byte /= Levels) put(c, (uint8_t)(byte % Levels));
  }
}

// One row, from `out` on: where its layout begins for this row.
template <int Levels>
static void lay_row(int32_t layout, int64_t r, int64_t columns, const uint8_t* packed, uint8_t* out) {
  const int64_t tile = r / TILE, row = r % TILE, padded = round_up(columns, COLUMN_STEP);
  const int64_t quad = (tile * 4 + row / 16) * (padded / 4), place = row % 16 * 4;
  if (layout == BYTES) {
    each_code<Levels>(packed, columns, [&](int64_t c, uint8_t code) { out[(quad + c / 4) * 64 + place + c % 4] = code; });
  } else if (layout == PAIRS) {
    each_code<Levels>(packed, columns, [&](int64_t c, uint8_t code) {
      out[(tile * padded / 4 + c / 4) * 64 + place + c % 4] |= code << (2 * (row / 16));
    });
  } else if (layout == NIBBLES) {  // as in the file, but for the bits that fill its last byte
    uint8_t* to = out + tile * padded / 8 * TILE + row;
    for (int64_t b = 0; b < columns / 8; ++b) to[b * TILE] = packed[b];
    if (columns % 8) to[columns / 8 * TILE] = packed[columns / 8] & ((1 << columns % 8) - 1);
  } else {
    uint8_t* to = out + tile * (round_up(columns, SEXTET_STEP) / 6) * TILE + row;
    const int64_t width = (columns + 7) / 8;
    for (int64_t c = 0; c < columns; c += 6) {
      const int both = packed[c / 8] | (c / 8 + 1 < width ? packed[c / 8 + 1] << 8 : 0);
      const int six = both >> c % 8 & (columns - c < 6 ? (1 << (columns - c)) - 1 : 63);
      static_assert(SEXTET_BIT[0] == 0 && SEXTET_BIT[1] == 1 && SEXTET_BIT[2] == 4 && SEXTET_BIT[4] == 2, "");
      to[c / 6 * TILE] = (six & 3) | (six & 12) << 2 | (six & 48) >> 2;
    }
  }
}

// Lays the packed rows of a file out, in zeroed memory `out` of xtc_layout_bytes; row 0 of them as row `first`.
API void xtc_lay_out(int32_t layout, int32_t levels, int64_t first, int64_t rows, int64_t columns, const uint8_t* packed, uint8_t* out) {
  const int per_byte = levels == 2 ? 8 : levels == 3 ? 5 : 2;
  const int64_t width = (columns + per_byte - 1) / per_byte;
  const auto lay = levels == 2 ? lay_row<2> : levels == 3 ? lay_row<3> : lay_row<16>;
  for (int64_t r = 0; r < rows; ++r) lay(layout, first + r, columns, packed + r * width, out);
}

// Writes memory back and drops it from all caches of the processor where a program may do that, to time products of weights
// that come from memory.
API void xtc_evict(const uint8_t* from, int64_t bytes) {
  constexpr int LINE = 64;  // or a multiple
  for (int64_t i = 0; i < bytes; i += LINE) {
#if defined(__x86_64__)
    __builtin_ia32_clflush(from + i);
#elif defined(__aarch64__) && defined(__linux__)
    asm volatile("dc civac, %0" ::"r"(from + i) : "memory");
#endif
  }
#if defined(__x86_64__)
  __builtin_ia32_mfence();
#elif defined(__aarch64__) && defined(__linux__)
  asm volatile("dsb ish" ::: "memory");
#endif
}

API int64_t xtc_linear(int variant, const Weight* w, const float* x, int64_t tokens, float* out, const Threads* threads) {
  return VARIANTS[variant]->linear(*w, x, tokens, out, *threads);
}

static bool below(const int64_t* ids, int64_t n, int64_t limit) {
  bool all = true;
  for (int64_t i = 0; i < n; ++i) all &= (uint64_t)ids[i] < (uint64_t)limit;
  return all;
}

// -1: the offsets are not those of num_tokens tokens, or a sequence has none; -2, -3, -4: an id of a token, a position
// or a type is no row of its table; -5: a sequence is longer than the distances reach. Otherwise as Variant::encoder.
API int64_t xtc_encoder(int variant, const Encoder* e, const Batch* b, const Head* head, const Outputs* out, const Threads* threads) {
  for (int64_t s = 0; s < b->num_sequences; ++s)
    if (b->offsets[s + 1] <= b->offsets[s]) return -1;
  if (e->distances)
    for (int64_t s = 0; s < b->num_sequences; ++s)
      if (b->offsets[s + 1] - b->offsets[s] > e->reach) return -5;
  if (b->offsets[0] != 0 || b->offsets[b->num_sequences] != b->num_tokens) return -1;
  if (!below(b->words, b->num_tokens, e->words.size)) return -2;
  if (!below(b->positions, b->num_tokens, e->positions.size)) return -3;
  if (b->types && !below(b->types, b->num_tokens, e->types.size)) return -4;
  return VARIANTS[variant]->encoder(*e, *b, *head, *out, *threads);
}

API int64_t xtc_fake(int variant, const Fake* f, const Threads* threads) {
  VARIANTS[variant]->fake(*f, *threads);
  return 0;
}
