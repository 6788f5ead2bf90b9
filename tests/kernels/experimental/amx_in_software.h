// The AMX tiles that csrc/conv_weight_grad.cpp uses, as plain C++: given with -include to test it on any x86 processor.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <immintrin.h>

struct SoftTile {
  float values[16][16];
};
inline thread_local SoftTile soft_tiles[8];
inline thread_local uint8_t soft_config[64];

inline void soft_check() {
  if (soft_config[0] == 1) return;
  std::fputs("a tile was used before _tile_loadconfig\n", stderr);
  std::abort();
}
inline void soft_load(int tile, const void* from, long stride) {
  soft_check();
  for (long row = 0; row < 16; row++)
    std::memcpy(soft_tiles[tile].values[row], static_cast<const char*>(from) + row * stride, 64);
}
inline void soft_store(int tile, void* to, long stride) {
  soft_check();
  for (long row = 0; row < 16; row++)
    std::memcpy(static_cast<char*>(to) + row * stride, soft_tiles[tile].values[row], 64);
}
inline float soft_bfloat16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
inline void soft_multiply(int sums, int left, int right) {
  soft_check();
  uint16_t a[16][32], b[16][32];
  std::memcpy(a, soft_tiles[left].values, sizeof a);
  std::memcpy(b, soft_tiles[right].values, sizeof b);
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        for (int pair = 0; pair < 2; pair++)
          soft_tiles[sums].values[m][n] += soft_bfloat16(a[m][2 * k + pair]) * soft_bfloat16(b[k][2 * n + pair]);
}

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) std::memcpy(soft_config, from, 64)
#define _tile_storeconfig(to) std::memcpy(to, soft_config, 64)
#define _tile_release() std::memset(soft_config, 0, 64)
#define _tile_zero(tile) (soft_check(), std::memset(&soft_tiles[tile], 0, sizeof(SoftTile)))
#define _tile_loadd(tile, from, stride) soft_load(tile, from, stride)
#define _tile_stored(tile, to, stride) soft_store(tile, to, stride)
#define _tile_dpbf16ps(sums, left, right) soft_multiply(sums, left, right)
