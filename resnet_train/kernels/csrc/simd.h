// Vectors of float32, filled from and written to memory that holds float32 or bfloat16: as wide as the registers are.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) || defined(RESNET_TRAIN_WIDE)
constexpr int kLanes = 16;  // there are 32 such registers
#else
constexpr int kLanes = 8;  // 16 registers
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct bfloat16 {
  uint16_t bits;
};

inline Floats as_floats(Words words) {
  Floats values;
  std::memcpy(&values, &words, sizeof values);
  return values;
}
inline Words as_words(Floats values) {
  Words words;
  std::memcpy(&words, &values, sizeof words);
  return words;
}

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline Floats load(const bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return as_floats(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void store(bfloat16* to, Floats values) {  // rounds to nearest even
#if defined(__AVX512BF16__)
  __m512 wide;
  std::memcpy(&wide, &values, sizeof wide);
  const __m256bh halves = _mm512_cvtneps_pbh(wide);
  std::memcpy(to, &halves, sizeof halves);
#else
  const Words words = as_words(values);
  const Words nan = (Words)(values != values);
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

}  // namespace
