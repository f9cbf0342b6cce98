// Runs the native operator without Python or PyTorch, for processors that are emulated (test_arm.py writes its cases).
//
//   driver                          prints the names of the variants that the processor runs, the fastest first
//   driver VARIANT CASES OUTPUTS    computes the cases of a file and writes their results, one after the other
//
// A case is a sequence of int64 numbers and arrays, as read below; VARIANT may be followed by :N to compute all N times.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "kernels.hpp"

using namespace xtc;

extern "C" {
const char* xtc_variant(int);
int64_t xtc_layout_bytes(int32_t, int64_t, int64_t);
void xtc_lay_out(int32_t, int32_t, int64_t, int64_t, int64_t, const uint8_t*, uint8_t*);
int64_t xtc_linear(int, const Weight*, const float*, int64_t, float*, const Threads*);
int64_t xtc_encoder(int, const Encoder*, const Batch*, const Head*, const Outputs*, const Threads*);
int64_t xtc_fake(int, const Fake*, const Threads*);
}

static void check(bool fine, const char* what) {
  if (fine) return;
  fprintf(stderr, "driver: %s\n", what);
  exit(1);
}

static FILE *cases, *outputs;
static int variant, repeats = 1;
static Threads one_thread{};
static std::deque<std::vector<char>> memory;  // of the case at hand

static char* room(int64_t bytes) {
  memory.emplace_back(bytes + 64);
  return memory.back().data();
}

// An array of the file, and zeros behind it up to `padded` elements.
template <class T>
static T* array(int64_t count, int64_t padded = 0) {
  T* values = (T*)room((padded > count ? padded : count) * sizeof(T));
  check((int64_t)fread(values, sizeof(T), count, cases) == count, "the file of cases ends too early");
  return values;
}

static int64_t number() { return *array<int64_t>(1); }

static void write(const void* values, int64_t bytes) {
  check((int64_t)fwrite(values, 1, bytes, outputs) == bytes, "cannot write the results");
}

static Weight weight() {
  const int32_t layout = number(), levels = number();
  const int64_t rows = number(), columns = number(), padded = round_up(rows, TILE);
  const uint8_t* packed = array<uint8_t>(number());
  uint8_t* codes = (uint8_t*)room(xtc_layout_bytes(layout, rows, columns));
  xtc_lay_out(layout, levels, 0, rows, columns, packed, codes);
  const float* scale = array<float>(rows, padded);
  return {layout, levels, rows, columns, codes, scale, array<float>(rows, padded)};
}

static void linear() {
  const Weight w = weight();
  const int64_t tokens = number();
  const float* x = array<float>(tokens * w.columns);
  float* out = (float*)room(tokens * w.rows * sizeof(float));
  for (int i = 0; i < repeats; ++i) check(xtc_linear(variant, &w, x, tokens, out, &one_thread) == 0, "a linear failed");
  write(out, tokens * w.rows * sizeof(float));
}

static void fake() {
  Fake f{};
  f.kind = number();
  f.half = number();
  f.groups = number();
  f.size = number();
  const int64_t bytes = f.groups * f.size * (f.kind == BFLOAT16_TOKENS ? 2 : 4);
  f.values = array<char>(bytes);
  f.threshold = array<float>(f.groups);
  f.scale = array<float>(f.groups);
  f.count = (float*)room(f.groups * sizeof(float));
  f.out = room(bytes);
  for (int i = 0; i < repeats; ++i) check(xtc_fake(variant, &f, &one_thread) == 0, "a fake-quantization failed");
  write(f.out, bytes);
  if (f.kind == KEPT) write(f.count, f.groups * sizeof(float));
}

static Table table() {
  const int64_t levels = number(), size = number();
  const void* rows = array<char>(number());
  return {levels, size, rows, array<float>(levels ? size : 0)};
}

static void encoder() {
  Encoder e{};
  e.hidden = number();
  e.heads = number();
  e.intermediate = number();
  e.num_layers = number();
  e.attention_epsilon = e.embedding_epsilon = 1e-12f;
  e.width = e.hidden;
  e.words = table();
  e.positions = table();
  e.types = table();
  e.embedding_gamma = array<float>(e.hidden);
  e.embedding_beta = array<float>(e.hidden);
  std::vector<Layer> layers(e.num_layers);
  for (Layer& layer : layers) {
    for (Weight* w : {&layer.qkv, &layer.attention_output, &layer.intermediate, &layer.output}) *w = weight();
    for (const float** norm : {&layer.attention_gamma, &layer.attention_beta, &layer.output_gamma, &layer.output_beta})
      *norm = array<float>(e.hidden);
  }
  e.layers = layers.data();
  e.reach = number();  // with distances, the embeddings are projected too
  if (e.reach) {
    e.distances = array<float>(e.heads * (2 * e.reach - 1));
    e.packed_projection = &layers[0].attention_output;
  }
  Batch b{};
  b.num_sequences = number();
  b.num_tokens = number();
  b.offsets = array<int64_t>(b.num_sequences + 1);
  b.words = array<int64_t>(b.num_tokens);
  b.positions = array<int64_t>(b.num_tokens);
  b.types = array<int64_t>(b.num_tokens);
  // A head of the weights that are there: hidden states, pooled ones and logits are written one after the other.
  const Dense classifier{1, e.embedding_gamma, e.embedding_beta};
  const Head head{&layers[0].attention_output, nullptr, &classifier};
  const int64_t size = ((b.num_tokens + b.num_sequences) * e.hidden + b.num_sequences) * sizeof(float);
  float *found = (float*)room(size), *shared = (float*)room(size);
  const auto run = [&](float* to, Threads threads) {
    float* pooled = to + b.num_tokens * e.hidden;
    const Outputs outputs{to, pooled, pooled + b.num_sequences * e.hidden};
    check(xtc_encoder(variant, &e, &b, &head, &outputs, &threads) == 0, "an encoder failed");
  };
  for (int i = 0; i < repeats; ++i) run(found, one_thread);
  run(shared, Threads{nullptr, 3});
  check(!memcmp(found, shared, size), "three threads computed something else than one");
  write(found, size);
}

int main(int argc, char** argv) {
  one_thread.number = 1;
  if (argc == 1) {
    for (int i = 0; const char* name = xtc_variant(i); ++i)
      if (*name) puts(name);
    return 0;
  }
  check(argc == 4, "usage: driver [VARIANT CASES OUTPUTS]");
  std::string wanted = argv[1];
  const size_t colon = wanted.find(':');
  if (colon != std::string::npos) {
    repeats = atoi(argv[1] + colon + 1);
    wanted.resize(colon);
  }
  for (variant = 0; xtc_variant(variant) && wanted != xtc_variant(variant);) ++variant;
  check(xtc_variant(variant), "the processor does not run this variant");
  cases = fopen(argv[2], "rb");
  outputs = fopen(argv[3], "wb");
  check(cases && outputs, "cannot open the files");
  void (*const kinds[])() = {linear, fake, encoder};
  for (int64_t count = number(); count > 0; --count) {
    memory.clear();
    const int64_t kind = number();
    check(kind >= 0 && kind < 3, "no such kind of case");
    kinds[kind]();
  }
  check(fclose(outputs) == 0, "cannot write the results");
}
