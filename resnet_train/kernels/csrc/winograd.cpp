// 3x3 convolutions (stride 1, padding 1) of channels_last tensors on the CPU, forward and backward, by Winograd's
// minimal filtering F(4x4, 3x3): 36 products for 16 results where the definition makes 144 (Winograd 1980; Lavin and
// Gray 2015, arXiv 1509.09308).
//
// A tile of 4x4 results needs 6x6 values d of the input. With the polynomials' points 0, a, -a, b, -b and infinity,
//
//   results = A [ (G w G') . (B d B') ] A'
//
// where the dot multiplies element by element and sums over input channels: 36 products of matrices, one for each
// element. The gradient of the input is a convolution with the weights turned around. The gradient of the weights is
// the same with other sides, F(3x3, 4x4): 3x3 results, the 6x6 values of the input, and 4x4 of the output's gradient.
//
// Usual are the points a = 1, b = 2. With a = 3/4, b = 3/2, whose powers are as exact in binary, the error of float32
// is half of that: twice that of the definition, not four times (measured on random values; tests/kernels/test_cpu.py has
// the bound).
//
// Values are float or bfloat16 in memory and float32 in every computation. Each result is summed in one order, so the
// number of threads makes no difference: sums over images are taken in parts that the shape alone decides.
//
// kernels/native.py builds it.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

#include <sys/mman.h>

#include "simd.h"
#include "threads.h"

namespace {

constexpr int kRows = kLanes == 16 ? 12 : 6;  // of a product at a time: 12 x 2 registers of sums of 32, or 6 x 2 of 16
constexpr long kPanel = 2 * kLanes;  // columns of a product at a time
constexpr long kPoints = 36;

// ------------------------------------------------------------------------------------------------- the transformations

constexpr float a1 = 0.75f, b1 = 1.5f;
constexpr float a2 = a1 * a1, b2 = b1 * b1, a3 = a2 * a1, b3 = b2 * b1;
constexpr float kSum = a2 + b2, kProduct = a2 * b2;
// 1 / (p - q) over the other points q, for the points p = 0, a and -a, b and -b
constexpr float k0 = 1 / kProduct, kA = 1 / (2 * a2 * (a2 - b2)), kB = 1 / (2 * b2 * (b2 - a2));

// B d: six values of the input
inline void input_six(const Floats* d, long step, Floats* out) {
  const Floats d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Floats even_a = d4 - b2 * d2, odd_a = a1 * (d3 - b2 * d1);
  const Floats even_b = d4 - a2 * d2, odd_b = b1 * (d3 - a2 * d1);
  out[0] = d4 - kSum * d2 + kProduct * d0;
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = d5 - kSum * d3 + kProduct * d1;
}

// A m: four results
inline void output_four(const Floats* m, long step, Floats* out) {
  const Floats sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
  const Floats sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
  out[0] = m[0] + sum_a + sum_b;
  out[1] = a1 * difference_a + b1 * difference_b;
  out[2] = a2 * sum_a + b2 * sum_b;
  out[3] = a3 * difference_a + b3 * difference_b + m[5 * step];
}

// G w: three weights
inline void weights_three(const Floats* w, long step, Floats* out) {
  const Floats w0 = w[0], w1 = w[step], w2 = w[2 * step];
  out[0] = k0 * w0;
  const Floats even_a = kA * (w0 + a2 * w2), odd_a = (kA * a1) * w1;
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  const Floats even_b = kB * (w0 + b2 * w2), odd_b = (kB * b1) * w1;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = w2;
}

// G g for the gradient of the weights: four values of the output's gradient, without the factors k
inline void gradient_four(const Floats* g, long step, Floats* out) {
  const Floats g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
  out[0] = g0;
  const Floats even_a = g0 + a2 * g2, odd_a = a1 * (g1 + a2 * g3);
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  const Floats even_b = g0 + b2 * g2, odd_b = b1 * (g1 + b2 * g3);
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g3;
}

// A m for the gradient of the weights, with the factors k
inline void weights_gradient_three(const Floats* m, long step, Floats* out) {
  const Floats sum_a = kA * (m[step] + m[2 * step]), difference_a = (kA * a1) * (m[step] - m[2 * step]);
  const Floats sum_b = kB * (m[3 * step] + m[4 * step]), difference_b = (kB * b1) * (m[3 * step] - m[4 * step]);
  out[0] = k0 * m[0] + sum_a + sum_b;
  out[1] = difference_a + difference_b;
  out[2] = a2 * sum_a + b2 * sum_b + m[5 * step];
}

// ---------------------------------------------------------------------------------------------------------------- tiles

long divide_up(long value, long by) { return (value + by - 1) / by; }

constexpr long kHugePage = 2 << 20;

// Memory that a thread keeps for the next call.
class Kept {
 public:
  ~Kept() { std::free(memory_); }
  float* reserve(long count) {
    if (count > count_) {
      std::free(memory_);
      const long bytes = divide_up(count * sizeof(float), kHugePage) * kHugePage;
      memory_ = static_cast<float*>(std::aligned_alloc(kHugePage, bytes));
      if (memory_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE  // of Linux
      madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
      count_ = count;
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  long count_ = 0;
};

struct Images {
  long count, height, width;
  long tiles_y() const { return divide_up(height, 4); }
  long tiles_x() const { return divide_up(width, 4); }
  long tiles() const { return count * tiles_y() * tiles_x(); }
};

struct Tile {
  long image, y, x;  // of its first result
  Tile(const Images& images, long index) {
    x = index % images.tiles_x() * 4;
    y = index / images.tiles_x() % images.tiles_y() * 4;
    image = index / images.tiles_x() / images.tiles_y();
  }
};

// From one of the 36 matrices to the next: not a power of two, or all would compete for the same lines of the cache.
long stride_of(long rows, long columns) { return rows * columns + 16; }

// The 6x6 input values of a tile, transformed, for `channels` channels, to out + point * stride. rows: of the input,
// from the tile's leftmost value on. Columns before `left` and from `right` on lie outside and count as zero.
template <int left, int right, class T>
inline void transform_rows(const T* const* rows, long channels, float* out, long stride) {
  for (long c = 0; c < channels; c += kLanes) {
    Floats half[6][6];  // B d', by column
    for (int j = 0; j < 6; j++) {
      Floats d[6];
      for (int i = 0; i < 6; i++) d[i] = j < left || j >= right ? Floats{} : load(rows[i] + j * channels + c);
      input_six(d, 1, half[j]);
    }
    for (int i = 0; i < 6; i++) {
      Floats row[6];
      input_six(&half[0][i], 6, row);
      for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * stride + c, row[j]);
    }
  }
}

// One tile. zeros: a row of six pixels.
template <class T>
void transform_input(const Images& images, long channels, const T* x, const T* zeros, const Tile& tile, float* out,
                     long stride) {
  const T* rows[6];
  for (int i = 0; i < 6; i++) {
    const long y = tile.y + i - 1;
    const bool outside = y < 0 || y >= images.height;
    rows[i] = outside ? zeros : x + ((tile.image * images.height + y) * images.width + tile.x - 1) * channels;
  }
  const long right = images.width - tile.x + 1;  // 5 at the right border of a width that is a multiple of 4
  if (tile.x > 0) {
    if (right > 5) return transform_rows<0, 6>(rows, channels, out, stride);
    if (right == 5) return transform_rows<0, 5>(rows, channels, out, stride);
    if (right == 4) return transform_rows<0, 4>(rows, channels, out, stride);
    if (right == 3) return transform_rows<0, 3>(rows, channels, out, stride);
    return transform_rows<0, 2>(rows, channels, out, stride);
  }
  if (right > 5) return transform_rows<1, 6>(rows, channels, out, stride);
  if (right == 5) return transform_rows<1, 5>(rows, channels, out, stride);
  if (right == 4) return transform_rows<1, 4>(rows, channels, out, stride);
  if (right == 3) return transform_rows<1, 3>(rows, channels, out, stride);
  return transform_rows<1, 2>(rows, channels, out, stride);
}

// The 4x4 values of the output's gradient in one tile, transformed.
template <bool whole, class T>
inline void transform_gradient(const T* from, long row, long high, long wide, long channels, float* out, long stride) {
  for (long c = 0; c < channels; c += kLanes) {
    Floats half[4][6];
    for (int j = 0; j < 4; j++) {
      Floats g[4];
      for (int i = 0; i < 4; i++)
        g[i] = whole || (i < high && j < wide) ? load(from + i * row + j * channels + c) : Floats{};
      gradient_four(g, 1, half[j]);
    }
    for (int i = 0; i < 6; i++) {
      Floats points[6];
      gradient_four(&half[0][i], 6, points);
      for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * stride + c, points[j]);
    }
  }
}

// The 4x4 results of one tile, from m + point * stride, for `count` channels of an image that has `channels`.
template <bool whole, class T>
inline void transform_output(T* to, long row, long high, long wide, long channels, long count, const float* m,
                             long stride) {
  for (long c = 0; c < count; c += kLanes) {
    Floats half[6][4];
    for (int j = 0; j < 6; j++) {
      Floats column[6];
      for (int i = 0; i < 6; i++) column[i] = load(m + (i * 6 + j) * stride + c);
      output_four(column, 1, half[j]);
    }
    for (int i = 0; i < 4; i++) {
      Floats values[4];
      output_four(&half[0][i], 4, values);
      for (int j = 0; j < 4; j++)
        if (whole || (i < high && j < wide)) store(to + i * row + j * channels + c, values[j]);
    }
  }
}

// Calls body(pointer to a tile's first pixel, high, wide, whole): how much of its 4x4 pixels lies inside.
template <class T, class Body>
inline void for_tile(const Images& images, long channels, T* pixels, const Tile& tile, Body body) {
  T* const first = pixels + ((tile.image * images.height + tile.y) * images.width + tile.x) * channels;
  const long high = std::min(4L, images.height - tile.y), wide = std::min(4L, images.width - tile.x);
  if (high == 4 && wide == 4)
    body(first, high, wide, std::true_type());
  else
    body(first, high, wide, std::false_type());
}

// ------------------------------------------------------------------------------------------------------------- products

// body(0), ..., body(count - 1), each with a constant: what is indexed by it can stay in registers.
template <int count, class Body>
__attribute__((always_inline)) inline void unrolled(Body body) {
  if constexpr (count > 0) {
    unrolled<count - 1>(body);
    body(std::integral_constant<int, count - 1>());
  }
}

// rows x N registers of c (+)= a b, over `inner`, which is above zero. a(row, k) is a[row * a_row + k * a_inner], b(k) is b[k * b_inner].
template <int rows, int N, bool add>
inline void product_block(const float* a, long a_row, long a_inner, const float* b, long b_inner, float* c, long c_row,
                          long inner) {
  Floats sums[rows * N];
  unrolled<rows * N>([&](auto i) __attribute__((always_inline)) {
    sums[i] = add ? load(c + i / N * c_row + i % N * kLanes) : Floats{};
  });
  long k = 0;
  do {
    Floats columns[N];
    unrolled<N>([&](auto n) __attribute__((always_inline)) { columns[n] = load(b + k * b_inner + n * kLanes); });
    unrolled<rows * N>([&](auto i) __attribute__((always_inline)) {
      sums[i] += a[i / N * a_row + k * a_inner] * columns[i % N];
    });
  } while (++k < inner);
  unrolled<rows * N>([&](auto i) __attribute__((always_inline)) {
    store(c + i / N * c_row + i % N * kLanes, sums[i]);
  });
}

template <int rows, int N, bool add>
void product_rows(long left, const float* a, long a_row, long a_inner, const float* b, long b_inner, float* c,
                  long c_row, long inner) {
  if constexpr (rows > 0) {
    if (left == rows)
      product_block<rows, N, add>(a, a_row, a_inner, b, b_inner, c, c_row, inner);
    else
      product_rows<rows - 1, N, add>(left, a, a_row, a_inner, b, b_inner, c, c_row, inner);
  }
}

template <int N, bool add>
void product_panel(long rows, const float* a, long a_row, long a_inner, const float* b, long b_inner, float* c,
                   long c_row, long inner) {
  long r = 0;
  for (; r + kRows <= rows; r += kRows)
    product_block<kRows, N, add>(a + r * a_row, a_row, a_inner, b, b_inner, c + r * c_row, c_row, inner);
  product_rows<kRows - 1, N, add>(rows - r, a + r * a_row, a_row, a_inner, b, b_inner, c + r * c_row, c_row, inner);
}

// `columns` columns, kPanel at a time: b_panel and c_panel lead from one to the next; what is left is half a panel.
template <bool add>
void product(long rows, long columns, const float* a, long a_row, long a_inner, const float* b, long b_inner,
             long b_panel, float* c, long c_row, long inner) {
  long column = 0;
  for (; column + kPanel <= columns; column += kPanel, b += b_panel)
    product_panel<2, add>(rows, a, a_row, a_inner, b, b_inner, c + column, c_row, inner);
  if (column < columns) product_panel<1, add>(rows, a, a_row, a_inner, b, b_inner, c + column, c_row, inner);
}

// -------------------------------------------------------------------------------------------------------------- weights

// Transformed weights: for each panel of the output's channels 36 matrices (channels of the input, kPanel or what is
// left of it), stride_of(...) apart. w (out, 3, 3, in). Turned around: for the gradient of the input, whose output are
// the input's channels.
long weights_size(long inner, long outer) {
  return divide_up(outer, kPanel) * kPoints * stride_of(inner, kPanel);
}
const float* weights_at(const float* u, long inner, long panel, long point) {
  return u + (panel * kPoints + point) * stride_of(inner, kPanel);
}

void transform_weights(const float* w, long in, long out, bool turned, float* u) {
  const long inner = turned ? out : in, outer = turned ? in : out;
#pragma omp for schedule(static)
  for (long block = 0; block < outer / kLanes; block++) {
    const long first = block * kLanes, panel = first / kPanel, wide = std::min(kPanel, outer - panel * kPanel);
    float* to = u + panel * kPoints * stride_of(inner, kPanel) + first % kPanel;
    for (long i = 0; i < inner; i++) {
      Floats taps[9], half[3][6];
      for (int tap = 0; tap < 9; tap++) {
        if (turned) {
          taps[tap] = load(w + (i * 9 + 8 - tap) * in + first);
        } else {
          float lanes[kLanes];
          for (int lane = 0; lane < kLanes; lane++) lanes[lane] = w[((first + lane) * 9 + tap) * in + i];
          taps[tap] = load(lanes);
        }
      }
      for (int j = 0; j < 3; j++) weights_three(taps + j, 3, half[j]);
      for (int p = 0; p < 6; p++) {
        Floats row[6];
        weights_three(&half[0][p], 6, row);
        for (int q = 0; q < 6; q++) store(to + (p * 6 + q) * stride_of(inner, kPanel) + i * wide, row[q]);
      }
    }
  }
}

// Tiles that are laid out at once, 36 values for each channel: as many as stay near, in a quarter of a second-level
// cache of 512 KiB, but enough that weights or sums that do not are not moved too often. Measured; the optimum is flat.
constexpr long kLaidOutFloats = 1 << 15;
long tiles_at_once(long channels, long least) {
  return std::clamp(kLaidOutFloats / kPoints / channels, std::clamp(least, 24L, 48L), 96L);
}
constexpr long kColumnsAtOnce = 64;  // of the output's channels, from a chunk's input

template <class T>
void convolve(const T* x, const float* w, T* y, const Images& images, long in, long out, bool turned) {
  static thread_local Kept kept_weights;
  float* const u = kept_weights.reserve(weights_size(in, out));
  const long columns_at_once = std::min(out, kColumnsAtOnce), row = images.width * out, tiles = images.tiles();
  // Any way to deal out tiles gives the same results: as many chunks for each thread, of the same size.
  const long most = tiles_at_once(in + columns_at_once, in / 4);
  const long chunks = std::min(tiles, divide_up(divide_up(tiles, most), omp_get_max_threads()) * omp_get_max_threads());
  const long at_once = divide_up(tiles, chunks);
#pragma omp parallel
  {
    transform_weights(w, turned ? out : in, turned ? in : out, turned, u);
    static thread_local Kept kept_input, kept_output, kept_zeros;
    const long input_stride = stride_of(at_once, in), output_stride = stride_of(at_once, columns_at_once);
    float* const input = kept_input.reserve(kPoints * input_stride);
    float* const output = kept_output.reserve(kPoints * output_stride);
    const T* const zeros = reinterpret_cast<const T*>(std::memset(kept_zeros.reserve(6 * in), 0, 6 * in * sizeof(T)));
#pragma omp for schedule(static)
    for (long chunk = 0; chunk < chunks; chunk++) {
      const long first = tiles * chunk / chunks, count = tiles * (chunk + 1) / chunks - first;
      for (long t = 0; t < count; t++)
        transform_input(images, in, x, zeros, Tile(images, first + t), input + t * in, input_stride);
      for (long begin = 0; begin < out; begin += columns_at_once) {
        const long columns = std::min(columns_at_once, out - begin);
        for (long point = 0; point < kPoints; point++)
          for (long column = begin; column < begin + columns; column += kPanel)
            product<false>(count, std::min(kPanel, out - column), input + point * input_stride, in, 1,
                           weights_at(u, in, column / kPanel, point), std::min(kPanel, out - column), 0,
                           output + point * output_stride + column - begin, columns, in);
        for (long t = 0; t < count; t++)
          for_tile(images, out, y, Tile(images, first + t), [&](T* to, long high, long wide, auto whole) {
            transform_output<whole>(to + begin, row, high, wide, out, columns, output + t * columns, output_stride);
          });
      }
    }
  }
}

// Parts of the tiles, which the shape alone decides: each has sums of its own.
constexpr long kMostParts = 16, kPartialFloats = 4 << 20;

template <class T>
void weight_gradient(const T* x, const T* dy, float* grad, const Images& images, long in, long out) {
  const long tiles = images.tiles(), row = images.width * out, size = out * kPoints * in;
  const long most = tiles_at_once(in + out, out);
  const long parts = std::min(divide_up(tiles, most), std::clamp(kPartialFloats / size, 2L, kMostParts));
  const long at_once = divide_up(divide_up(tiles, parts), divide_up(divide_up(tiles, parts), most));
  static thread_local Kept kept_sums;
  float* const sums = kept_sums.reserve(parts * size);  // (parts, out, 36, in)
#pragma omp parallel
  {
    static thread_local Kept kept_input, kept_gradient, kept_zeros;
    const long input_stride = stride_of(at_once, in), gradient_stride = stride_of(at_once, out);
    float* const input = kept_input.reserve(kPoints * input_stride);
    float* const gradient = kept_gradient.reserve(kPoints * gradient_stride);
    const T* const zeros = reinterpret_cast<const T*>(std::memset(kept_zeros.reserve(6 * in), 0, 6 * in * sizeof(T)));
#pragma omp for schedule(static)
    for (long part = 0; part < parts; part++) {
      const long begin = tiles * part / parts, end = tiles * (part + 1) / parts;
      for (long first = begin; first < end; first += at_once) {
        const long count = std::min(at_once, end - first);
        for (long t = 0; t < count; t++) {
          const Tile tile(images, first + t);
          transform_input(images, in, x, zeros, tile, input + t * in, input_stride);
          for_tile(images, out, dy, tile, [&](const T* from, long high, long wide, auto whole) {
            transform_gradient<whole>(from, row, high, wide, out, gradient + t * out, gradient_stride);
          });
        }
        for (long point = 0; point < kPoints; point++) {
          const float* a = gradient + point * gradient_stride;
          const float* b = input + point * input_stride;
          float* c = sums + part * size + point * in;
          if (first == begin)
            product<false>(out, in, a, 1, out, b, in, kPanel, c, kPoints * in, count);
          else
            product<true>(out, in, a, 1, out, b, in, kPanel, c, kPoints * in, count);
        }
      }
    }
#pragma omp for schedule(static)
    for (long o = 0; o < out; o++)
      for (long i = 0; i < in; i += kLanes) {
        Floats half[6][3];
        for (int q = 0; q < 6; q++) {
          Floats column[6];
          for (int p = 0; p < 6; p++) {
            const float* from = sums + (o * kPoints + p * 6 + q) * in + i;
            column[p] = load(from);
            for (long part = 1; part < parts; part++) column[p] += load(from + part * size);
          }
          weights_gradient_three(column, 1, half[q]);
        }
        for (int p = 0; p < 3; p++) {
          Floats values[3];
          weights_gradient_three(&half[0][p], 3, values);
          for (int q = 0; q < 3; q++) store(grad + ((o * 3 + p) * 3 + q) * in + i, values[q]);
        }
      }
  }
}

}  // namespace

// x (count, height, width, in), w (out, 3, 3, in), y (count, height, width, out); in and out are multiples of 16.
// With `turned`, x is the gradient of an output and y that of its input: then in and out are those of x and y, and w is
// (in, 3, 3, out).
#define RESNET_TRAIN_EXPORT(suffix, T)                                                                               \
  extern "C" void winograd_convolve_##suffix(const T* x, const float* w, T* y, long count, long height, long width,   \
                                             long in, long out, int turned) {                                        \
    convolve(x, w, y, Images{count, height, width}, in, out, turned);                                                \
  }                                                                                                                  \
  extern "C" void winograd_weight_gradient_##suffix(const T* x, const T* dy, float* grad, long count, long height,    \
                                                    long width, long in, long out) {                                 \
    weight_gradient(x, dy, grad, Images{count, height, width}, in, out);                                             \
  }

RESNET_TRAIN_EXPORT(float32, float)
RESNET_TRAIN_EXPORT(bfloat16, bfloat16)
