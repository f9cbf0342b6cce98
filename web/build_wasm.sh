#!/bin/sh
# Builds dist/xtc.wasm and, with relaxed SIMD, dist/xtc-relaxed.wasm from the sources of the native operator.
# Debian: clang-19 lld-19 wasi-libc libc++-19-dev-wasm32 libclang-rt-19-dev-wasm32. Usage: web/build_wasm.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/dist}
mkdir -p "$out"
cd "$here/../hf_xtc/native/csrc"
exports=""
for name in malloc free xtc_interface xtc_layout_bytes xtc_lay_out xtc_encoder xtc_dense; do exports="$exports -Wl,--export=$name"; done
build() {
  clang++-19 --target=wasm32-wasi -std=c++17 -O3 -msimd128 -mbulk-memory -fno-exceptions -fno-rtti -fvisibility=hidden \
    -fno-math-errno -fno-trapping-math -ffp-contract=off -Wno-undefined-internal -Wno-unused-function -nostartfiles \
    -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=262144 $exports "$@" -o "$out/part" wasm.cpp library.cpp
  chmod 644 "$out/part"
}
build
mv "$out/part" "$out/xtc.wasm"
build -mrelaxed-simd
mv "$out/part" "$out/xtc-relaxed.wasm"
