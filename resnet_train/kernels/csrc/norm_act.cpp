// Batch norm, the addition of a shortcut and ReLU in two passes over memory, forward and backward, for channels_last
// tensors on the CPU. PyTorch makes four passes of the first and seven of the second: the thin networks of CIFAR spend
// most of a step there.
//
// A tensor (N, C, H, W) in channels_last is a table of rows = N * H * W and C columns; C is a multiple of 16. Values are
// float or bfloat16; sums, scales and statistics are float, their totals double. Rows are summed in chunks of a size
// that depends on the shape alone, and the chunks are added in order: the result is the same for any number of threads.
//
// NaN passes through, as it does in PyTorch. No header of PyTorch is needed; kernels/native.py builds it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace {

constexpr int kForward = 4, kBackward = kLanes == 16 ? 4 : 2;  // registers of a row at a time, lest they be kept in memory
constexpr long kChunkValues = 32768;  // 64 KiB of bfloat16: half of a second-level cache or less
constexpr long kBlockValues = 1024;

// Past the caches, which a tensor of kStreamed bytes would only sweep: saves reading what is then overwritten.
#if defined(__AVX2__)
constexpr long kStreamed = 16 << 20;
inline void stream(float* to, Floats values) {
  for (int i = 0; i < kLanes; i += 8) {
    __m256 part;
    std::memcpy(&part, reinterpret_cast<const float*>(&values) + i, sizeof part);
    _mm256_stream_ps(to + i, part);
  }
}
inline void stream(bfloat16* to, Floats values) {
  bfloat16 halves[kLanes];
  store(halves, values);
  for (int i = 0; i < kLanes; i += 8) {
    __m128i part;
    std::memcpy(&part, halves + i, sizeof part);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), part);
  }
}
inline bool can_stream(const void* to, long bytes) {
  return bytes >= kStreamed && reinterpret_cast<uintptr_t>(to) % 32 == 0;
}
#else
template <class T>
void stream(T* to, Floats values) {
  store(to, values);
}
inline bool can_stream(const void*, long) { return false; }
#endif

// values where gate is above zero or NaN, else zero
inline Floats where_positive(Floats gate, Floats values) { return as_floats(as_words(values) & ~(Words)(gate <= 0.0f)); }

// How rows are dealt out. Narrow tensors are read several rows at a time, as if they were one row of `width` columns.
struct Layout {
  long rows, width, chunk, chunks;
  int folded;

  Layout(long num_rows, long channels) : folded(1) {
    while (channels * folded * 2 <= 4 * kLanes && num_rows % (folded * 2) == 0) folded *= 2;
    rows = num_rows / folded;
    width = channels * folded;
    chunk = std::max(8L, kChunkValues / width);
    chunks = (rows + chunk - 1) / chunk;
  }
};

// Calls body(begin, end, index) for each of this thread's chunks; inside a parallel region.
template <class Body>
inline void for_my_chunks(const Layout& layout, Body body) {
  const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
  for (long i = layout.chunks * thread / threads; i < layout.chunks * (thread + 1) / threads; i++)
    body(i * layout.chunk, std::min(layout.rows, (i + 1) * layout.chunk), i);
}

// Calls body(column, registers, first row, last row) for blocks of some registers' columns, and of one register's where
// fewer are left, and of so few rows that the first-level cache has them all: memory is then read in order.
template <int registers, class Body>
inline void for_blocks(long begin, long end, long width, Body body) {
  constexpr long block = registers * kLanes;
  const long rows = std::clamp(kBlockValues / width, 4L, 64L);
  for (long first = begin; first < end; first += rows) {
    const long last = std::min(end, first + rows);
    long column = 0;
    for (; column + block <= width; column += block)
      body(column, std::integral_constant<int, registers>(), first, last);
    for (; column < width; column += kLanes) body(column, std::integral_constant<int, 1>(), first, last);
  }
}

// The same `channels` values for each folded row.
inline std::vector<float> spread(const Layout& layout, const float* values, long channels) {
  std::vector<float> wide(layout.width);
  for (long i = 0; i < layout.width; i++) wide[i] = values[i % channels];
  return wide;
}

// Two sums a column and chunk: (chunks, 2, width)
struct Sums {
  const Layout& layout;
  std::vector<float> values;

  explicit Sums(const Layout& l) : layout(l), values(l.chunks * 2 * l.width) {}
  float* chunk(long index) { return values.data() + index * 2 * layout.width; }
  double total(int which, long channel, long channels) const {
    double sum = 0;
    for (long i = 0; i < layout.chunks; i++)
      for (int k = 0; k < layout.folded; k++) sum += values[(i * 2 + which) * layout.width + k * channels + channel];
    return sum;
  }
};

// y = relu(x * scale + shift [+ shortcut]) of the rows begin to end
template <bool streamed, class T>
void apply(const T* x, const T* shortcut, T* y, const float* scale, const float* shift, long begin, long end,
           long width) {
  for_blocks<kForward>(begin, end, width, [&](long column, auto block, long first, long last) {
    constexpr int n = block.value;
    Floats a[n], b[n];
    for (int j = 0; j < n; j++) a[j] = load(scale + column + j * kLanes), b[j] = load(shift + column + j * kLanes);
    for (long row = first; row < last; row++)
      for (int j = 0; j < n; j++) {
        const long at = row * width + column + j * kLanes;
        Floats value = load(x + at) * a[j] + b[j];
        if (shortcut) value += load(shortcut + at);
        value = where_positive(value, value);
        streamed ? stream(y + at, value) : store(y + at, value);
      }
  });
}

template <class T>
void forward(const T* x, const T* shortcut, T* y, const float* weight, const float* bias, float* running_mean,
             float* running_var, float momentum, float eps, long num_rows, long channels, float* saved) {
  const Layout layout(num_rows, channels);
  Sums sums(layout);
  std::vector<float> origin(channels), scale(layout.width), shift(layout.width);
  // Sums are taken from the first row on, which keeps their digits where the mean is far from zero.
  for (long c = 0; c < channels; c += kLanes) store(origin.data() + c, load(x + c));
  const std::vector<float> origins = spread(layout, origin.data(), channels);
#pragma omp parallel
  {
    for_my_chunks(layout, [&](long begin, long end, long index) {
      float* sum = sums.chunk(index);
      for_blocks<kForward>(begin, end, layout.width, [&](long column, auto block, long top, long bottom) {
        constexpr int n = block.value;
        Floats from[n], first[n], second[n];
        for (int j = 0; j < n; j++) {
          from[j] = load(origins.data() + column + j * kLanes);
          first[j] = load(sum + column + j * kLanes);
          second[j] = load(sum + layout.width + column + j * kLanes);
        }
        for (long row = top; row < bottom; row++)
          for (int j = 0; j < n; j++) {
            const Floats value = load(x + row * layout.width + column + j * kLanes) - from[j];
            first[j] += value;
            second[j] += value * value;
          }
        for (int j = 0; j < n; j++) {
          store(sum + column + j * kLanes, first[j]);
          store(sum + layout.width + column + j * kLanes, second[j]);
        }
      });
    });
#pragma omp barrier
#pragma omp single
    for (long c = 0; c < channels; c++) {
      const double offset = sums.total(0, c, channels) / num_rows;
      // max() would turn NaN into zero
      double var = sums.total(1, c, channels) / num_rows - offset * offset;
      if (var < 0) var = 0;
      const double mean = origin[c] + offset, inverse = 1 / std::sqrt(var + eps);
      const double unbiased = num_rows > 1 ? var * num_rows / (num_rows - 1) : var;
      running_mean[c] += momentum * ((float)mean - running_mean[c]);
      running_var[c] += momentum * ((float)unbiased - running_var[c]);
      const float factor = (float)(inverse * weight[c]);
      saved[c] = (float)mean;
      saved[channels + c] = (float)inverse;
      saved[2 * channels + c] = factor;
      saved[3 * channels + c] = (float)(bias[c] - mean * factor);
      for (int k = 0; k < layout.folded; k++) {
        scale[k * channels + c] = factor;
        shift[k * channels + c] = saved[3 * channels + c];
      }
    }
    for_my_chunks(layout, [&](long begin, long end, long) {
      if (can_stream(y, num_rows * channels * sizeof(T)))
        apply<true>(x, shortcut, y, scale.data(), shift.data(), begin, end, layout.width);
      else
        apply<false>(x, shortcut, y, scale.data(), shift.data(), begin, end, layout.width);
    });
  }
}

template <class T>
void inference(const T* x, const T* shortcut, T* y, const float* scale, const float* shift, long num_rows,
               long channels) {
  const Layout layout(num_rows, channels);
  const std::vector<float> scales = spread(layout, scale, channels), shifts = spread(layout, shift, channels);
#pragma omp parallel
  for_my_chunks(layout, [&](long begin, long end, long) {
    apply<false>(x, shortcut, y, scales.data(), shifts.data(), begin, end, layout.width);
  });
}

// gated = the gradient where the output was above zero; it is kept where `gated` is given, else made again in the second
// pass. The output's sign is read from y where it held a shortcut, else computed from x as before.
template <class T>
void backward(const T* gradient, const T* x, const T* y, T* gated, T* grad_x, const float* saved,
              float* grad_weight, float* grad_bias, long num_rows, long channels) {
  const Layout layout(num_rows, channels);
  Sums sums(layout);
  const std::vector<float> mean = spread(layout, saved, channels), scale = spread(layout, saved + 2 * channels, channels),
                           shift = spread(layout, saved + 3 * channels, channels);
  std::vector<float> slope(layout.width), level(layout.width);
  const bool streamed = can_stream(grad_x, num_rows * channels * sizeof(T));
#pragma omp parallel
  {
    for_my_chunks(layout, [&](long begin, long end, long index) {
      float* sum = sums.chunk(index);
      for_blocks<kBackward>(begin, end, layout.width, [&](long column, auto block, long top, long bottom) {
        constexpr int n = block.value;
        Floats m[n], a[n], b[n], first[n], second[n];
        for (int j = 0; j < n; j++) {
          m[j] = load(mean.data() + column + j * kLanes);
          a[j] = load(scale.data() + column + j * kLanes);
          b[j] = load(shift.data() + column + j * kLanes);
          first[j] = load(sum + column + j * kLanes);
          second[j] = load(sum + layout.width + column + j * kLanes);
        }
        for (long row = top; row < bottom; row++)
          for (int j = 0; j < n; j++) {
            const long at = row * layout.width + column + j * kLanes;
            const Floats value = load(x + at);
            const Floats g = where_positive(y ? load(y + at) : value * a[j] + b[j], load(gradient + at));
            if (gated) store(gated + at, g);
            first[j] += g;
            second[j] += g * (value - m[j]);
          }
        for (int j = 0; j < n; j++) {
          store(sum + column + j * kLanes, first[j]);
          store(sum + layout.width + column + j * kLanes, second[j]);
        }
      });
    });
#pragma omp barrier
#pragma omp single
    for (long c = 0; c < channels; c++) {
      const double sum = sums.total(0, c, channels), product = sums.total(1, c, channels);
      const double inverse = saved[channels + c], factor = saved[2 * channels + c];
      grad_bias[c] = (float)sum;
      grad_weight[c] = (float)(product * inverse);
      for (int k = 0; k < layout.folded; k++) {
        slope[k * channels + c] = (float)(-factor * inverse * inverse * product / num_rows);
        level[k * channels + c] = (float)(-factor * sum / num_rows);
      }
    }
    for_my_chunks(layout, [&](long begin, long end, long) {
      for_blocks<kBackward>(begin, end, layout.width, [&](long column, auto block, long top, long bottom) {
        constexpr int n = block.value;
        Floats m[n], a[n], b[n], s[n], l[n];
        for (int j = 0; j < n; j++) {
          m[j] = load(mean.data() + column + j * kLanes);
          a[j] = load(scale.data() + column + j * kLanes);
          b[j] = load(shift.data() + column + j * kLanes);
          s[j] = load(slope.data() + column + j * kLanes);
          l[j] = load(level.data() + column + j * kLanes);
        }
        for (long row = top; row < bottom; row++)
          for (int j = 0; j < n; j++) {
            const long at = row * layout.width + column + j * kLanes;
            const Floats value = load(x + at);
            const Floats g = gated ? load(gated + at) : where_positive(value * a[j] + b[j], load(gradient + at));
            const Floats result = g * a[j] + ((value - m[j]) * s[j] + l[j]);
            streamed ? stream(grad_x + at, result) : store(grad_x + at, result);
          }
      });
    });
  }
}

}  // namespace

#define RESNET_TRAIN_EXPORT(suffix, T)                                                                               \
  extern "C" void norm_act_forward_##suffix(const T* x, const T* shortcut, T* y, const float* weight,                \
                                            const float* bias, float* running_mean, float* running_var,             \
                                            float momentum, float eps, long rows, long channels, float* saved) {     \
    forward(x, shortcut, y, weight, bias, running_mean, running_var, momentum, eps, rows, channels, saved);          \
  }                                                                                                                  \
  extern "C" void norm_act_inference_##suffix(const T* x, const T* shortcut, T* y, const float* scale,               \
                                              const float* shift, long rows, long channels) {                        \
    inference(x, shortcut, y, scale, shift, rows, channels);                                                         \
  }                                                                                                                  \
  extern "C" void norm_act_backward_##suffix(const T* gradient, const T* x, const T* y, T* gated, T* grad_x,         \
                                             const float* saved, float* grad_weight, float* grad_bias, long rows,    \
                                             long channels) {                                                        \
    backward(gradient, x, y, gated, grad_x, saved, grad_weight, grad_bias, rows, channels);                          \
  }

RESNET_TRAIN_EXPORT(float32, float)
RESNET_TRAIN_EXPORT(bfloat16, bfloat16)
