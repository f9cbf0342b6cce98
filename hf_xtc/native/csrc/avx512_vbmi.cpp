// As avx512.cpp, and with VBMI binary codes by lookup of six columns at once.
#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma,f16c,bmi2")

#define VARIANT avx512_vbmi_code
#define VBMI
#include "avx512.inl"

namespace xtc {
const Variant avx512_vbmi = {"avx512_vbmi", avx512_vbmi_code::linear, avx512_vbmi_code::encoder, avx512_vbmi_code::fake};
}
END_TARGET
#else
namespace xtc {
const Variant avx512_vbmi = {nullptr, nullptr, nullptr, nullptr};
}
#endif
