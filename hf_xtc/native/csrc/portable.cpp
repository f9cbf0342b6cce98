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
constexpr int DOT_ROWS = 2;

template <class V>
static inline void narrow(V q, int8_t* to) {
  for (int i = 0; i < VECTOR_BYTES / 4; ++i) to[i] = q[i];
}

template <class V>
static inline V fused(V a, V b, V c) {
  return a * b + c;
}

#include "bytes.inl"

}  // namespace VARIANT
}  // namespace xtc

#include "kernels.inl"

#include "fake.inl"

namespace xtc {
const Variant portable = {"portable", portable_code::linear, portable_code::encoder, portable_code::fake};
}
