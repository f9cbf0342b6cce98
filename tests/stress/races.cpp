// Runs the native operator on threads that ThreadSanitizer can see: its own, and in place of OpenMP's, whose runtime is
// not instrumented, new ones. Several callers at once; every result must be bitwise that of one thread.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <thread>
#include <vector>

#include "kernels.hpp"

using namespace xtc;

extern "C" const char* xtc_variant(int);
extern "C" int64_t xtc_layout_bytes(int32_t, int64_t, int64_t);
extern "C" void xtc_lay_out(int32_t, int32_t, int64_t, int64_t, int64_t, const uint8_t*, uint8_t*);
extern "C" int64_t xtc_linear(int, const Weight*, const float*, int64_t, float*, const Threads*);
extern "C" int64_t xtc_encoder(int, const Encoder*, const Batch*, const Head*, const Outputs*, const Threads*);
extern "C" int64_t xtc_fake(int, const Fake*, const Threads*);

// As GOMP_parallel: the caller is one of the team.
static void parallel(void (*body)(void*), void* data, unsigned number, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < number; ++i) others.emplace_back(body, data);
  body(data);
  for (auto& other : others) other.join();
}

struct Numbers {
  std::mt19937 random;
  std::vector<float> floats(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (auto& value : values) value = normal(random);
    return values;
  }
};

struct Laid {
  std::vector<uint8_t> codes;
  std::vector<float> scale, bias;
  Weight weight;
  Laid(Numbers& numbers, int64_t rows, int64_t columns) {
    const int64_t width = (columns + 7) / 8;
    std::vector<uint8_t> packed(rows * width);
    for (auto& byte : packed) byte = numbers.random();
    codes.resize(xtc_layout_bytes(NIBBLES, rows, columns));
    xtc_lay_out(NIBBLES, 2, 0, rows, columns, packed.data(), codes.data());
    scale = numbers.floats(round_up(rows, TILE));
    bias = numbers.floats(round_up(rows, TILE));
    weight = {NIBBLES, 2, rows, columns, codes.data(), scale.data(), bias.data()};
  }
};

static bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

// Calls of one caller; false if a result differs from that of one thread.
static bool caller(int variant, unsigned seed, int rounds) {
  Numbers numbers{std::mt19937(seed)};
  for (int round = 0; round < rounds; ++round) {
    const Threads one{nullptr, 1}, many{round % 2 ? parallel : nullptr, 2 + (int64_t)(numbers.random() % 4)};
    const int64_t heads = 2, hidden = 48, inner = 80, layers = 2, length = 1 + numbers.random() % 30;
    Laid linear(numbers, 100, 65);
    const int64_t tokens = 1 + numbers.random() % 120;
    const auto x = numbers.floats(tokens * 65);
    std::vector<float> out[2] = {std::vector<float>(tokens * 100), std::vector<float>(tokens * 100)};
    xtc_linear(variant, &linear.weight, x.data(), tokens, out[0].data(), &one);
    xtc_linear(variant, &linear.weight, x.data(), tokens, out[1].data(), &many);
    if (!same(out[0], out[1])) return false;

    std::vector<Laid> weights;
    for (int64_t l = 0; l < layers; ++l) {
      weights.emplace_back(numbers, 3 * hidden, hidden);
      weights.emplace_back(numbers, hidden, hidden);
      weights.emplace_back(numbers, inner, hidden);
      weights.emplace_back(numbers, hidden, inner);
    }
    const auto gamma = numbers.floats(hidden), beta = numbers.floats(hidden), table = numbers.floats(40 * hidden);
    std::vector<Layer> stack;
    for (int64_t l = 0; l < layers; ++l)
      stack.push_back({weights[4 * l].weight, weights[4 * l + 1].weight, weights[4 * l + 2].weight, weights[4 * l + 3].weight,
                       gamma.data(), beta.data(), gamma.data(), beta.data()});
    const Table rows{0, 40, table.data(), nullptr};
    const Laid projection(numbers, hidden, hidden);
    const auto distances = numbers.floats(heads * (2 * length - 1));
    const Encoder encoder{hidden, heads, inner, layers, 1e-12f, 1e-12f, hidden, rows, rows, rows, gamma.data(), beta.data(),
                          &projection.weight, nullptr, distances.data(), length, stack.data()};
    const int64_t sequences = 1 + numbers.random() % 6;
    std::vector<int64_t> offsets{0}, ids;
    for (int64_t s = 0; s < sequences; ++s) offsets.push_back(offsets.back() + length);
    for (int64_t t = 0; t < offsets.back(); ++t) ids.push_back(numbers.random() % 40);
    const Batch batch{sequences, offsets.back(), offsets.data(), ids.data(), ids.data(), ids.data()};
    const Laid pooler(numbers, hidden, hidden);
    const auto weight = numbers.floats(3 * hidden);
    const Dense classifier{3, weight.data(), nullptr};
    const Head head{&pooler.weight, nullptr, &classifier};
    for (int i = 0; i < 2; ++i) {  // hidden states, pooled ones and logits, one after the other
      out[i].assign((offsets.back() + sequences) * hidden + sequences * 3, 0);
      float* pooled = out[i].data() + offsets.back() * hidden;
      const Outputs outputs{out[i].data(), pooled, pooled + sequences * hidden};
      xtc_encoder(variant, &encoder, &batch, &head, &outputs, i ? &many : &one);
    }
    if (!same(out[0], out[1])) return false;

    const int64_t groups = 5, size = 30000;
    const auto values = numbers.floats(groups * size), threshold = numbers.floats(groups), scale = numbers.floats(groups);
    for (int32_t kind : {BINARY, TERNARY, KEPT, FLOAT_TOKENS}) {
      std::vector<float> counts[2] = {std::vector<float>(groups), std::vector<float>(groups)};
      for (int i = 0; i < 2; ++i) {
        out[i].assign(groups * size, 0);
        const Fake fake{kind, 128, groups, size, values.data(), threshold.data(), scale.data(), counts[i].data(), out[i].data()};
        xtc_fake(variant, &fake, i ? &many : &one);
      }
      if (!same(out[0], out[1]) || !same(counts[0], counts[1])) return false;
    }
  }
  return true;
}

int main(int, char** arguments) {
  const int rounds = atoi(arguments[1]);
  for (int variant = 0; const char* name = xtc_variant(variant); ++variant) {
    if (!*name) continue;
    std::vector<std::thread> callers;
    int right[3] = {};
    for (int i = 0; i < 3; ++i) callers.emplace_back([&, i] { right[i] = caller(variant, i, rounds); });
    for (auto& one : callers) one.join();
    printf("%s: %d of 3 callers, %d rounds each, got the results of one thread\n", name, right[0] + right[1] + right[2], rounds);
    if (right[0] + right[1] + right[2] < 3) return 1;
  }
  return 0;
}
