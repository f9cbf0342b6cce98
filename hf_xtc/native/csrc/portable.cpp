// Plain C++: the operator for any processor, and the reference of the others' tests.
#include "kernels.hpp"

#define VARIANT portable_code
#define VECTOR_BYTES 16

namespace xtc {
namespace VARIANT {

constexpr int LOOKUP_ROWS = 0;
constexpr int64_t MAX_ROWS = 36;
constexpr bool FUSES = false;
constexpr int SEXTET_ROWS = 0;

template <class V>
static inline void narrow(V q, int8_t* to) {
  for (int i = 0; i < VECTOR_BYTES / 4; ++i) to[i] = q[i];
}

template <class V>
static inline V fused(V a, V b, V c) {
  return a * b + c;
}

// sums[rows][64] += 64 rows of codes times `rows` rows of activations; `quads` groups of 4 columns.
static void dot(const uint8_t* codes, int64_t panel, const int8_t* x, int64_t stride, int64_t rows, int64_t quads, int, int32_t* sums) {
  for (int p = 0; p < 4; ++p)
    for (int64_t r = 0; r < rows; ++r) {
      int32_t sum[16] = {};
      for (int64_t q = 0; q < quads; ++q)
        for (int j = 0; j < 16; ++j)
          for (int k = 0; k < 4; ++k) sum[j] += codes[p * panel + q * 64 + j * 4 + k] * x[r * stride + q * 4 + k];
      for (int j = 0; j < 16; ++j) sums[r * TILE + p * 16 + j] += sum[j];
    }
}

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"

namespace xtc {
const Variant portable = {"portable", portable_code::linear, portable_code::encoder, portable_code::fake};
}
