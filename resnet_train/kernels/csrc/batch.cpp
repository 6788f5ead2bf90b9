// Crop, flip and normalise a batch of images in one pass: what augment.crop_flip and augment.normalise do, to the bit.
// kernels/native.py builds it.

#include <cstdint>

#include "threads.h"

// Image i of the batch is images[index[i]], shifted by its offsets minus padding, mirrored where flip[i] is set.
// images (N, height, width, kChannels), out (count, height, width, kChannels); table (kChannels, 256): the normalised
// value of each byte, by channel. With reflect, what lies outside is mirrored at the border pixel; else it is a black
// pixel.
template <int kChannels>
static void make_batch(const uint8_t* images, const int64_t* index, const int64_t* offset_y, const int64_t* offset_x,
                       const bool* flip, long count, long height, long width, long padding, int reflect,
                       const float* table, float* out) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < count; i++) {
    const uint8_t* image = images + index[i] * height * width * kChannels;
    float* to = out + i * height * width * kChannels;
    for (long y = 0; y < height; y++) {
      long row = y + offset_y[i] - padding;
      if (reflect) {
        row = row < 0 ? -row : row;
        row = row >= height ? 2 * (height - 1) - row : row;
      }
      const bool row_inside = row >= 0 && row < height;
      for (long x = 0; x < width; x++) {
        long column = (flip[i] ? width - 1 - x : x) + offset_x[i] - padding;
        if (reflect) {
          column = column < 0 ? -column : column;
          column = column >= width ? 2 * (width - 1) - column : column;
        }
        const bool inside = row_inside && column >= 0 && column < width;
        const uint8_t* pixel = image + (row * width + column) * kChannels;
        for (int c = 0; c < kChannels; c++) *to++ = table[c * 256 + (inside ? pixel[c] : 0)];
      }
    }
  }
}

// channels: 1 or 3.
extern "C" void crop_flip_normalise(const uint8_t* images, const int64_t* index, const int64_t* offset_y,
                                    const int64_t* offset_x, const bool* flip, long count, long height, long width,
                                    long channels, long padding, int reflect, const float* table, float* out) {
  const auto make = channels == 1 ? make_batch<1> : make_batch<3>;
  make(images, index, offset_y, offset_x, flip, count, height, width, padding, reflect, table, out);
}
