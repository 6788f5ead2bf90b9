// The gradient of the weights of a 3x3 convolution (stride 1, padding 1) in bfloat16, on processors with AMX tiles.
//
// grad[co][kh][kw][ci] = sum over images and pixels of dy[n][h][w][co] * x[n][h + kh - 1][w + kw - 1][ci]
//
// is nine products of matrices whose inner dimension are the pixels. x and dy are laid out on one grid with a row and a
// column of zeros between images and rows, so that pixel q of dy meets pixel q + kh * (W + 1) + kw of x and nothing
// else has to be treated apart. A tile takes pixels in pairs; a pair of x that begins at an odd pixel is another pair,
// which is why x is laid out twice. Sums are float. Images are dealt out in parts by the shape alone and the parts are
// added in order: the result is the same for any number of threads.
//
// kernels/experimental/amx.py builds it, where the compiler and the processor know AMX.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long kBlock = 16;      // channels a tile
constexpr long kPixels = 32;     // pixels a tile
constexpr long kTaps = 9;
constexpr long kTileFloats = kBlock * kBlock;
constexpr long kPackedBytes = 1 << 20;   // of x and dy laid out: half of a second-level cache
constexpr long kPartialBytes = 8 << 20;  // of the sums of all parts

// Tile instructions do not tell the compiler which memory they touch: nothing may be moved across this.
inline void fence() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles of this thread, set up for this file, and given back as they were.
struct Tiles {
  alignas(64) uint8_t before[64] = {};
  Tiles() {
    const TileConfig config;
    fence();
    _tile_storeconfig(before);
    _tile_loadconfig(&config);
    fence();
  }
  ~Tiles() {
    fence();
    if (before[0] == 0)
      _tile_release();
    else
      _tile_loadconfig(before);
  }
};

struct Grid {
  long height, width, row, image;  // row and image: pixels from one to the next

  Grid(long h, long w) : height(h), width(w), row(w + 1), image((h + 1) * (w + 1)) {}
};

long round_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

// Copy images to their places on the grid; what lies between stays as it is. `shift`: the place of the first pixel.
void lay_out(const Grid& grid, const uint16_t* images, long count, long channels, long shift, uint16_t* places) {
  const long row = grid.width * channels;
  for (long n = 0; n < count; n++)
    for (long h = 0; h < grid.height; h++)
      std::memcpy(places + (n * grid.image + h * grid.row + shift) * channels, images + (n * grid.height + h) * row,
                  row * sizeof(uint16_t));
}

inline __m256i load(const uint16_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// 16 places of 16 channels, `channels` apart, to 16 channels of 16 pixels; row r of the result goes to out + r * stride
inline void transpose(const uint16_t* place, long channels, uint16_t* out, long stride) {
  __m256i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = load(place + i * channels);
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 2; k++) {
      a[4 * i + 2 * k] = _mm256_unpacklo_epi32(b[4 * i + k], b[4 * i + 2 + k]);
      a[4 * i + 2 * k + 1] = _mm256_unpackhi_epi32(b[4 * i + k], b[4 * i + 2 + k]);
    }
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < 4; k++) {
      b[8 * i + 2 * k] = _mm256_unpacklo_epi64(a[8 * i + k], a[8 * i + 4 + k]);
      b[8 * i + 2 * k + 1] = _mm256_unpackhi_epi64(a[8 * i + k], a[8 * i + 4 + k]);
    }
  for (int k = 0; k < 8; k++) {
    auto* low = reinterpret_cast<__m256i*>(out + k * stride);
    auto* high = reinterpret_cast<__m256i*>(out + (k + 8) * stride);
    _mm256_storeu_si256(low, _mm256_permute2x128_si256(b[k], b[8 + k], 0x20));
    _mm256_storeu_si256(high, _mm256_permute2x128_si256(b[k], b[8 + k], 0x31));
  }
}

// channels of two pixels, interleaved: 16 pairs
inline void interleave(const uint16_t* first, const uint16_t* second, uint16_t* out) {
  const __m256i a = load(first), b = load(second);
  const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_store_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_permute2x128_si256(low, high, 0x31));
}

// Memory that a thread keeps for the next call: to get it anew each time would take as long as to fill it.
template <class T>
class Kept {
 public:
  ~Kept() { std::free(memory_); }
  T* get() const { return memory_; }
  void reserve(long count) {
    if (count <= count_) return;
    std::free(memory_);
    memory_ = static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 64)));
    if (memory_ == nullptr) throw std::bad_alloc();
    count_ = count;
  }

 private:
  T* memory_ = nullptr;
  long count_ = 0;
};

// The images of one thread, laid out.
struct Packed {
  long tiles, span;  // tiles of pixels in dy; pixels of x that they meet, even
  Kept<uint16_t> dy, x[2];
  std::vector<uint16_t> dy_places, x_places;

  void reserve(const Grid& grid, long images, long in, long out) {
    tiles = (images * grid.image + kPixels - 1) / kPixels;
    span = round_up(tiles * kPixels + 2 * grid.row + 2 + 2, kPixels);
    dy.reserve(tiles * kPixels * out);
    for (auto& one : x) one.reserve(span * in);
    dy_places.assign(tiles * kPixels * out, 0);
    x_places.assign((span + 1) * in, 0);
  }

  void pack(const Grid& grid, const uint16_t* x_images, const uint16_t* dy_images, long images, long in, long out) {
    // Fewer images than the last time would leave some of those behind.
    const long used = images * grid.image;
    std::fill(dy_places.begin() + used * out, dy_places.end(), 0);
    std::fill(x_places.begin() + (used + grid.row) * in, x_places.end(), 0);
    lay_out(grid, dy_images, images, out, 0, dy_places.data());
    lay_out(grid, x_images, images, in, grid.row + 1, x_places.data());
    for (long tile = 0; tile < tiles; tile++)  // (out / 16, tiles, 16 channels, 32 pixels)
      for (long block = 0; block < out / kBlock; block++)
        for (long half = 0; half < 2; half++)
          transpose(dy_places.data() + (tile * kPixels + half * 16) * out + block * kBlock, out,
                    dy.get() + (block * tiles + tile) * kBlock * kPixels + half * 16, kPixels);
    for (long block = 0; block < in / kBlock; block++)  // (in / 16, pairs, 16 channels, 2 pixels)
      for (long pair = 0; pair < span / 2; pair++) {
        const long at = (block * span / 2 + pair) * 2 * kBlock;
        const uint16_t* place = x_places.data() + 2 * pair * in + block * kBlock;
        interleave(place, place + in, x[0].get() + at);
        interleave(place + in, place + 2 * in, x[1].get() + at);
      }
  }
};

template <int tap, int taps>
inline void products(const Packed& packed, const Grid& grid, const uint16_t* dy, long in_block, float* sums,
                     bool first) {
  const uint16_t* x[taps];
  for (int t = 0; t < taps; t++) {
    const long shift = (tap + t) / 3 * grid.row + (tap + t) % 3;
    x[t] = packed.x[shift % 2].get() + (in_block * packed.span / 2 + shift / 2) * 2 * kBlock;
  }
  constexpr long kStep = kPixels * kBlock;
  fence();
  if (first) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    if constexpr (taps > 4) _tile_zero(4);
  } else {
    _tile_loadd(0, sums, 64); _tile_loadd(1, sums + kTileFloats, 64);
    _tile_loadd(2, sums + 2 * kTileFloats, 64); _tile_loadd(3, sums + 3 * kTileFloats, 64);
    if constexpr (taps > 4) _tile_loadd(4, sums + 4 * kTileFloats, 64);
  }
  for (long tile = 0; tile < packed.tiles; tile++) {
    _tile_loadd(5, dy + tile * kStep, 64);
    _tile_loadd(6, x[0] + tile * kStep, 64); _tile_dpbf16ps(0, 5, 6);
    _tile_loadd(7, x[1] + tile * kStep, 64); _tile_dpbf16ps(1, 5, 7);
    _tile_loadd(6, x[2] + tile * kStep, 64); _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, x[3] + tile * kStep, 64); _tile_dpbf16ps(3, 5, 7);
    if constexpr (taps > 4) { _tile_loadd(6, x[4] + tile * kStep, 64); _tile_dpbf16ps(4, 5, 6); }
  }
  _tile_stored(0, sums, 64); _tile_stored(1, sums + kTileFloats, 64);
  _tile_stored(2, sums + 2 * kTileFloats, 64); _tile_stored(3, sums + 3 * kTileFloats, 64);
  if constexpr (taps > 4) _tile_stored(4, sums + 4 * kTileFloats, 64);
  fence();
}

}  // namespace

// Whether the system lets this process use tiles; asks for it.
extern "C" int conv_weight_grad_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// x (count, height, width, in), dy (count, height, width, out) bfloat16; grad (out, 3, 3, in) float; in and out are
// multiples of 16.
extern "C" void conv_weight_grad(const uint16_t* x, const uint16_t* dy, float* grad, long count, long height,
                                 long width, long in, long out) {
  const Grid grid(height, width);
  const long in_blocks = in / kBlock, out_blocks = out / kBlock, size = kTaps * in * out;
  const long parts = std::min(count, std::max(2L, std::min(16L, kPartialBytes / (size * 4))));
  const long group = std::max(1L, std::min((count + parts - 1) / parts, kPackedBytes / (grid.image * (2 * in + out) * 2)));
  static thread_local Kept<float> memory;  // (parts, out / 16, in / 16, 9, 16, 16)
  memory.reserve(parts * size);
  float* const partial = memory.get();
#pragma omp parallel
  {
    const Tiles tiles;
    static thread_local Packed packed;
    packed.reserve(grid, group, in, out);
    const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (long part = parts * thread / threads; part < parts * (thread + 1) / threads; part++) {
      const long begin = count * part / parts, end = count * (part + 1) / parts;
      for (long image = begin; image < end; image += group) {
        packed.pack(grid, x + image * height * width * in, dy + image * height * width * out,
                    std::min(group, end - image), in, out);
        for (long o = 0; o < out_blocks; o++)
          for (long i = 0; i < in_blocks; i++) {
            float* sums = partial + part * size + (o * in_blocks + i) * kTaps * kTileFloats;
            const uint16_t* from = packed.dy.get() + o * packed.tiles * kPixels * kBlock;
            products<0, 5>(packed, grid, from, i, sums, image == begin);
            products<5, 4>(packed, grid, from, i, sums + 5 * kTileFloats, image == begin);
          }
      }
    }
#pragma omp barrier
    for (long o = out * thread / threads; o < out * (thread + 1) / threads; o++)
      for (long tap = 0; tap < kTaps; tap++)
        for (long i = 0; i < in_blocks; i++) {
          const float* from = partial + ((o / kBlock * in_blocks + i) * kTaps + tap) * kTileFloats + o % kBlock * kBlock;
          float* to = grad + (o * kTaps + tap) * in + i * kBlock;
          for (long c = 0; c < kBlock; c++) {
            float sum = 0;
            for (long part = 0; part < parts; part++) sum += from[part * size + c];
            to[c] = sum;
          }
        }
  }
}
