// The operator's data structures, and the interface of its build for one instruction set.
//
// Every variant (portable.cpp, avx2.cpp, neon.cpp, ...) compiles the same kernels.inl under other names; library.cpp picks
// one at run time. No PyTorch and no Python headers: data come as pointers, threads from pool.cpp.
#pragma once

#include <cstdint>

#include "pool.hpp"

// All functions that follow are compiled for the given instruction sets; END_TARGET ends it (Clang) at the end of a file.
#define XTC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(features) XTC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET XTC_PRAGMA(clang attribute pop)
#else
#define TARGET(features) XTC_PRAGMA(GCC target(features))
#define END_TARGET
#endif

// GCC and Clang write the features of 64-bit ARM differently.
#if defined(__clang__)
#define NEON_TARGET(gcc, clang) clang
#else
#define NEON_TARGET(gcc, clang) gcc
#endif

// Keeps two sums in registers here: otherwise the compiler delays additions until it runs out of registers.
#if defined(__x86_64__)
#define HOLD(a, b) asm volatile("" : "+v"(a), "+v"(b))
#elif defined(__aarch64__)
#define HOLD(a, b) asm volatile("" : "+w"(a), "+w"(b))
#else
#define HOLD(a, b)
#endif

namespace xtc {

// How a weight lies in memory. Columns are padded to COLUMN_STEP, rows to TILE; a tile is TILE rows of all columns.
enum Layout : int32_t {
  BYTES = 0,   // one code a byte: per 16 rows, [column / 4][row][column % 4]; for the 8-bit multipliers
  PAIRS = 1,   // two bits a code: [column / 4][row % 16][column % 4], bits 2 p and 2 p + 1 of a byte for row / 16 = p
  NIBBLES = 2,  // one bit a code: [column / 8][row], low nibble columns 0-3 of the 8, high nibble columns 4-7
  SEXTETS = 3  // one bit a code, six columns a byte: [column / 6][row], bits 0 to 5 their columns 0, 1, 4, 5, 2, 3
};

constexpr int TILE = 64;
constexpr int COLUMN_STEP = 64;
constexpr int SEXTET_STEP = 24;  // of columns in SEXTETS
constexpr int SEXTET_BIT[6] = {0, 1, 4, 5, 2, 3};

struct Weight {
  int32_t layout;
  int32_t levels;         // 2, 3 or 16; a code c stands for (alpha * c - beta) times the row's scale
  int64_t rows, columns;  // output and input features
  const uint8_t* codes;
  const float* scale;  // (rows,)
  const float* bias;   // (rows,), never null
};

struct Table {  // an embedding table, in the file's layout
  int64_t levels;  // 2, 3, 16, 256; 0: float32 rows
  int64_t size;    // rows
  const void* rows;    // packed bytes or floats
  const float* scale;  // (rows,), unused for float rows
};

struct Layer {
  Weight qkv, attention_output, intermediate, output;
  const float *attention_gamma, *attention_beta, *output_gamma, *output_beta;
};

// A linear in float32.
struct Dense {
  int64_t rows;         // output features
  const float* weight;  // (rows, columns)
  const float* bias;    // (rows,), or null
};

struct Encoder {
  int64_t hidden, heads, intermediate, num_layers;
  float attention_epsilon, embedding_epsilon;
  int64_t width;  // of the embeddings; hidden, unless there is a projection
  Table words, positions, types;  // types: of size 0 where there are none
  const float *embedding_gamma, *embedding_beta;
  const Weight* packed_projection;  // from the embeddings to the hidden states: at most one of the two
  const Dense* projection;
  const float* distances;  // null, or (heads, 2 * reach - 1): added to the scores of queries q and keys k at k - q + reach - 1
  int64_t reach;           // tokens that a sequence may have, with distances
  const Layer* layers;
};

// What follows the encoder: the pooler (at most one of the two) on each sequence's first token and the function behind
// it, then the classifier.
enum Activation : int64_t { TANH, GELU, RELU };

struct Head {
  const Weight* packed_pooler;
  const Dense *pooler, *classifier;
  int64_t activation;
};

struct Outputs {
  float* hidden;  // (num_tokens, hidden)
  float* pooled;  // (num_sequences, hidden), with a pooler
  float* logits;  // (num_sequences, classifier->rows), with a classifier
};

// A batch without its padding: sequence s has tokens offsets[s] to offsets[s + 1].
struct Batch {
  int64_t num_sequences, num_tokens;
  const int64_t *offsets, *words, *positions, *types;  // types: null where there are none
};

// What fake.inl computes, group by group (tokens: row by row).
enum Kind : int32_t {
  BINARY = 0,          // out: -scale or scale
  TERNARY = 1,         // out: -scale, 0 or scale
  KEPT = 2,            // out: magnitudes beyond the threshold, or 0; count: how many
  FLOAT_TOKENS = 3,    // out: values on symmetric levels, float32
  BFLOAT16_TOKENS = 4  // the same, bfloat16
};

struct Fake {
  int32_t kind;
  float half;            // tokens: half the number of levels
  int64_t groups, size;  // not 0
  const void* values;    // (groups, size)
  const float *threshold, *scale;  // (groups,)
  float* count;                    // (groups,)
  void* out;                       // (groups, size)
};

// `linear` and `encoder` return the bytes of memory that they could not have, or 0.
struct Variant {
  const char* name;
  int64_t (*linear)(const Weight&, const float* x, int64_t tokens, float* out, const Threads&);
  int64_t (*encoder)(const Encoder&, const Batch&, const Head&, const Outputs&, const Threads&);
  void (*fake)(const Fake&, const Threads&);
};

extern const Variant portable, neon, neon_dotprod, neon_i8mm, avx2, avx512, avx512_vbmi, wasm;

static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace xtc
