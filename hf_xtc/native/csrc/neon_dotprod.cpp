// NEON with dot products: four products of bytes added to 32 bits in one instruction (ARMv8.2; every Apple silicon).
// Clang before 16 declares its intrinsics only where the whole build may use them.
#include "kernels.hpp"
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#include <arm_neon.h>
#include <stdlib.h>
#include <string.h>
TARGET(NEON_TARGET("arch=armv8.2-a+dotprod", "dotprod"))

#define VARIANT neon_dotprod_code
#define DOTPROD
#include "neon.inl"

namespace xtc {
const Variant neon_dotprod = {"neon_dotprod", neon_dotprod_code::linear, neon_dotprod_code::encoder, neon_dotprod_code::fake};
}
END_TARGET
#else
namespace xtc {
const Variant neon_dotprod = {nullptr, nullptr, nullptr, nullptr};
}
#endif
