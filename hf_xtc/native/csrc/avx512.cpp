// AVX512 with VNNI: four unsigned times signed bytes added to 32 bits in one instruction, and binary codes by table
// lookup.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")

#define VARIANT avx512_code
#include "avx512.inl"

namespace xtc {
const Variant avx512 = {"avx512_vnni", avx512_code::linear, avx512_code::encoder, avx512_code::fake};
}
END_TARGET
#else
namespace xtc {
const Variant avx512 = {nullptr, nullptr, nullptr, nullptr};
}
#endif
