// NEON with products of 2 x 8 by 8 x 2 bytes in one instruction (ARMv8.6; Neoverse V1 and N2, Apple M2, and later).
// Clang before 16 declares its intrinsics only where the whole build may use them.
#include "kernels.hpp"
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8))
#include <arm_neon.h>
#include <stdlib.h>
#include <string.h>
TARGET(NEON_TARGET("arch=armv8.2-a+dotprod+i8mm", "dotprod,i8mm"))

#define VARIANT neon_i8mm_code
#define DOTPROD
#define I8MM
#include "neon.inl"

namespace xtc {
const Variant neon_i8mm = {"neon_i8mm", neon_i8mm_code::linear, neon_i8mm_code::encoder, neon_i8mm_code::fake};
}
END_TARGET
#else
namespace xtc {
const Variant neon_i8mm = {nullptr, nullptr, nullptr, nullptr};
}
#endif
