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
API int xtc_interface() { return 3; }

static const Variant* const VARIANTS[] = {&avx512_vbmi, &avx512, &avx2, &neon_i8mm, &neon_dotprod, &neon, &portable};

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

// Lays the packed rows of a file out, in zeroed memory `out` of xtc_layout_bytes.
API void xtc_lay_out(int32_t layout, int32_t levels, int64_t rows, int64_t columns, const uint8_t* packed, uint8_t* out) {
  const int per_byte = levels == 2 ? 8 : levels == 3 ? 5 : 2;
  const int64_t width = (columns + per_byte - 1) / per_byte, padded = round_up(columns, COLUMN_STEP);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t tile = r / TILE, row = r % TILE;
    for (int64_t c = 0; c < columns;) {
      int byte = packed[r * width + c / per_byte];
      for (int d = 0; d < per_byte && c < columns; ++d, ++c, byte /= levels) {
        const uint8_t code = byte % levels;
        const int64_t place = row % 16 * 4 + c % 4, quad = (tile * 4 + row / 16) * (padded / 4) + c / 4;
        if (layout == BYTES)
          out[quad * 64 + place] = code;
        else if (layout == PAIRS)
          out[quad * 16 + place % 16] |= code << (2 * (place / 16));
        else if (layout == SEXTETS)
          out[(tile * (round_up(columns, SEXTET_STEP) / 6) + c / 6) * TILE + row] |= code << SEXTET_BIT[c % 6];
        else
          out[(tile * padded / 8 + c / 8) * TILE + row] |= code << (c % 8);
      }
    }
  }
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
// or a type is no row of its table. Otherwise as Variant::encoder.
API int64_t xtc_encoder(int variant, const Encoder* e, const Batch* b, float* hidden, const Threads* threads) {
  for (int64_t s = 0; s < b->num_sequences; ++s)
    if (b->offsets[s + 1] <= b->offsets[s]) return -1;
  if (b->offsets[0] != 0 || b->offsets[b->num_sequences] != b->num_tokens) return -1;
  if (!below(b->words, b->num_tokens, e->words.size)) return -2;
  if (!below(b->positions, b->num_tokens, e->positions.size)) return -3;
  if (!below(b->types, b->num_tokens, e->types.size)) return -4;
  return VARIANTS[variant]->encoder(*e, *b, hidden, *threads);
}

API int64_t xtc_fake(int variant, const Fake* f, const Threads* threads) {
  VARIANTS[variant]->fake(*f, *threads);
  return 0;
}
