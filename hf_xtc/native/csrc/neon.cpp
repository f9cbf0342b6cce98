// NEON as every 64-bit ARM processor has it: binary codes by table lookup, others by widening products.
#include "kernels.hpp"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stdlib.h>
#include <string.h>

#define VARIANT neon_code
#include "neon.inl"

namespace xtc {
const Variant neon = {"neon", neon_code::linear, neon_code::encoder, neon_code::fake};
}
#else
namespace xtc {
const Variant neon = {nullptr, nullptr, nullptr, nullptr};
}
#endif
