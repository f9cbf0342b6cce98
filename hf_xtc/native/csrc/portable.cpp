// Plain C++: the operator for any processor, and the reference of the others' tests.
#include <string.h>

#include "kernels.hpp"

#define VARIANT portable_code
#define VECTOR_BYTES 16

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 0;
constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = false;
constexpr bool MULTIPLIES_PAIRS = false;
constexpr int SEXTET_ROWS = 0;

template <class V>
static inline void narrow(V q, int8_t* to) {
  for (int i = 0; i < VECTOR_BYTES / 4; ++i) to[i] = q[i];
}

template <class V>
static inline V fused(V a, V b, V c) {
  return a * b + c;
}

typedef int16_t Shorts __attribute__((vector_size(16)));
typedef int32_t Quads __attribute__((vector_size(16)));

// sums[M][16 of 64] += one panel's 16 rows of codes times M rows of activations. Products of even and of odd columns add up
// in 16 bits for as long as codes below `levels` cannot overflow them: this is what any set of vector instructions has.
template <int M>
static void dot_panel(const uint8_t* codes, const int8_t* x, int64_t stride, int64_t quads, int levels, int32_t* sums) {
  const int64_t safe = 32767 / (256 * (levels - 1));
  for (int64_t start = 0; start < quads; start += safe) {
    const int64_t end = start + safe < quads ? start + safe : quads;
    Shorts sum[M][4] = {};
    for (int64_t q = start; q < end; ++q) {
      Shorts even[M], odd[M];
      for (int i = 0; i < M; ++i) {
        int32_t four;
        memcpy(&four, x + i * stride + q * 4, 4);
        const Quads values = {four, four, four, four};
        even[i] = (Shorts)values << 8 >> 8;
        odd[i] = (Shorts)values >> 8;
      }
      for (int p = 0; p < 4; ++p) {
        Shorts both;
        memcpy(&both, codes + q * 64 + p * 16, 16);
        const Shorts low = both & 255, high = both >> 8;
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

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int levels, int32_t* sums) {
  for (int p = 0; p < 4; ++p, codes += panel, sums += 16) {
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) dot_panel<2>(codes, x + r * stride, stride, quads, levels, sums + r * TILE);
    if (r < rows) dot_panel<1>(codes, x + r * stride, stride, quads, levels, sums + r * TILE);
  }
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"

namespace xtc {
const Variant portable = {"portable", portable_code::linear, portable_code::encoder, portable_code::fake};
}
