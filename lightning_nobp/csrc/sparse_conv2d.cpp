// Convolution of images with sparse kernels, and its gradients: a sparse matrix times shifted images.
//
// A chunk of image rows is copied into flat planes, one row of pixels after the other at a pitch that leaves just enough
// zeros between them: what pads one row on the right pads the next one on the left, and likewise from image to image.
// Then a kernel's tap is a constant distance, and a non-zero is one offset. With stride s an image is split into s * s
// planes, so that neighbouring outputs read neighbouring inputs.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "sparse_product.h"

namespace nobp {
namespace {

// The planes of a chunk stay in the second level of the cache beside the weights.
constexpr int64_t kChunkBytes = 192 * 1024;

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int64_t divide_up(int64_t a, int64_t b) { return -divide_down(-a, b); }

// One of the two directions of an image.
struct Axis {
  int64_t inputs, outputs, kernel, stride, padding, dilation;

  // Tap k of the kernel reads, for output o, pixel o + shift(k) of plane phase(k).
  int64_t shift(int64_t k) const { return divide_down(k * dilation - padding, stride); }
  int64_t phase(int64_t k) const { return k * dilation - padding - shift(k) * stride; }
  // Pixels of a plane.
  int64_t plane(int64_t phase) const { return divide_up(inputs - phase, stride); }
  // How far taps reach before the first output, and behind the last.
  int64_t before() const { return std::max<int64_t>(0, -shift(0)); }
  int64_t behind() const { return std::max<int64_t>(0, shift(kernel - 1)); }
  // Distance of two rows, or images, so that each finds zeros wherever a tap leaves it.
  int64_t pitch() const { return std::max(plane(0) + before(), outputs + behind()); }
};

struct Problem {
  int64_t batch, in_channels, out_channels, groups;
  Axis rows, columns;
  const int32_t *row_first, *column;
  int threads;

  int64_t nonzeros() const { return row_first[out_channels]; }
  int64_t taps() const { return rows.kernel * columns.kernel; }
  int64_t phases() const { return rows.stride * columns.stride; }
  int64_t in_group() const { return in_channels / groups; }
  int64_t out_group() const { return out_channels / groups; }
  bool parallel() const { return threads > 1 && nonzeros() * batch * rows.outputs * columns.outputs > kParallelWork; }
};

// Where the rows of a chunk lie in its planes. All images stand on top of each other: row v is row v % pitch of image
// v / pitch. A chunk is the rows [start, start + rows), with `above` and `below` more around them.
struct Chunk {
  int64_t start, rows, above, below;
};

template <class T>
struct Layout {
  int64_t pitch, lead, plane;

  Layout(const Problem& p, int64_t rows, int64_t above, int64_t below) {
    pitch = p.columns.pitch();
    // A tap may reach over the ends of the first and last rows, and the last vector of a row over its end.
    lead = p.columns.before() + p.columns.behind();
    const int64_t line = 64 / sizeof(T);
    plane = (2 * lead + (rows + above + below) * pitch + kLanes<T> + line - 1) / line;
    // An odd number of lines: planes at a power of two would all fall into the same set of the cache.
    plane = (plane | 1) * line;
  }

  int64_t position(const Chunk& c, int64_t row, int64_t column) const {
    return lead + (row - c.start + c.above) * pitch + column;
  }
};

// Copy rows of images into planes; `data` is (batch, channels, axis.., ..) and `step` the stride of its phases.
template <class T>
void pack(const T* data, int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t row_stride,
          int64_t column_stride, int64_t image_pitch, const Chunk& chunk, const Layout<T>& layout, T* planes) {
  const int64_t total = chunk.above + chunk.rows + chunk.below;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t phase = 0; phase < row_stride * column_stride; ++phase) {
      const int64_t row_phase = phase / column_stride, column_phase = phase % column_stride;
      const int64_t plane_height = divide_up(height - row_phase, row_stride);
      const int64_t plane_width = divide_up(width - column_phase, column_stride);
      std::fill_n(planes, layout.lead, T(0));
      T* out = planes + layout.lead;
      int64_t v = chunk.start - chunk.above;
      int64_t image = divide_down(v, image_pitch), row = v - image * image_pitch;
      for (int64_t i = 0; i < total; ++i, out += layout.pitch) {
        if (image >= 0 && image < batch && row < plane_height) {
          const T* in = data + ((image * channels + c) * height + row * row_stride + row_phase) * width + column_phase;
          if (column_stride == 1) {
            for (int64_t w = 0; w < plane_width; ++w) out[w] = in[w];
          } else {
            for (int64_t w = 0; w < plane_width; ++w) out[w] = in[w * column_stride];
          }
          for (int64_t w = plane_width; w < layout.pitch; ++w) out[w] = T(0);
        } else {
          std::fill_n(out, layout.pitch, T(0));
        }
        if (++row == image_pitch) row = 0, ++image;
      }
      std::fill(out, planes + layout.plane, T(0));
      planes += layout.plane;
    }
  }
}

// The vectors that cover the pixels of a chunk, and where their lanes belong in an image tensor.
template <class T>
struct Cover {
  static constexpr int L = kLanes<T>;
  std::vector<int32_t> position;
  std::vector<int64_t> whole;  // destination of lane 0 where all lanes lie side by side, else -1
  std::vector<int64_t> lane;   // destination of every lane, -1 for none
  std::vector<Bits<T>> fresh;  // lanes that no earlier vector holds

  // Pixels of the plane of one phase: `height` x `width` of them, in images of `image` values, at `base`, `row_step` and
  // `column_step` apart.
  void build(const Chunk& c, const Layout<T>& layout, int64_t batch, int64_t image_pitch, int64_t height,
             int64_t width, int64_t image, int64_t base, int64_t row_step, int64_t column_step) {
    position.clear(), whole.clear(), lane.clear(), fresh.clear();
    // Rows that are shorter than a vector, or fill the last one badly, are covered as one long row with its padding.
    const int64_t by_rows = height * divide_up(width, L), flat = divide_up(image_pitch * layout.pitch, L);
    const auto target = [&](int64_t v, int64_t w) -> int64_t {
      const int64_t b = divide_down(v, image_pitch), h = v - b * image_pitch;
      if (v < c.start || v >= c.start + c.rows || b >= batch || h >= height || w >= width) return -1;
      return b * image + base + h * row_step + w * column_step;
    };
    if (by_rows <= flat && width >= L) {
      for (int64_t v = c.start; v < c.start + c.rows; ++v) {
        if (target(v, 0) < 0) continue;
        // The last vector ends with the row: some lanes are computed twice, and none is lost.
        for (int64_t w = 0; w < width; w += L) {
          const int64_t from = std::min(w, width - L);
          add(layout.position(c, v, from), w - from, [&](int i) { return target(v, from + i); }, column_step == 1);
        }
      }
      return;
    }
    const int64_t end = c.rows * layout.pitch;
    for (int64_t i = 0; i < end; i += L) {
      add(layout.position(c, c.start, i), 0,
          [&](int k) { return target(c.start + (i + k) / layout.pitch, (i + k) % layout.pitch); }, false);
    }
  }

  int count() const { return int(position.size()); }

  void write(int i, Vector<T> v, T* out) const {
    if (whole[i] >= 0) {
      store(out + whole[i], v);
      return;
    }
    for (int k = 0; k < L; ++k) {
      if (lane[i * L + k] >= 0) out[lane[i * L + k]] = v[k];
    }
  }

 private:
  template <class Target>
  void add(int64_t at, int64_t seen, const Target& target, bool contiguous) {
    Bits<T> mask = {};
    bool any = false;
    for (int k = 0; k < L; ++k) {
      const int64_t to = target(k);
      lane.push_back(to);
      mask[k] = to >= 0 && k >= seen ? -1 : 0;
      any = any || to >= 0;
    }
    if (!any) {
      lane.resize(lane.size() - L);
      return;
    }
    position.push_back(int32_t(at));
    whole.push_back(contiguous ? lane[lane.size() - L] : -1);
    fresh.push_back(mask);
  }
};

// Every output channel, or every channel and phase of the input's gradient, for the vectors of a cover.
template <class T>
struct Multiply {
  const Rows<T>& rows;
  int64_t first, step, count;  // rows first, first + step, ...
  const T* planes;
  const Cover<T>& cover;
  const T* bias;
  T* out;
  int64_t out_plane;

  template <int N>
  void run(int i) const {
    for (int64_t r = 0; r < count; ++r) {
      Vector<T> sum[N];
      for (int k = 0; k < N; ++k) sum[k] = broadcast(bias ? bias[r] : T(0));
      multiply_row<T, N>(rows, int(first + r * step), planes, cover.position.data() + i, sum);
      for (int k = 0; k < N; ++k) cover.write(i + k, sum[k], out + r * out_plane);
    }
  }
};

template <class T>
struct Correlate {
  const int32_t *row_first, *offset;
  int64_t count;
  const T *planes, *grad_planes;
  // How far the same pixel of the gradient's planes is from that of the input's.
  int64_t distance, grad_plane;
  const Cover<T>& cover;
  T* result;

  template <int N>
  void run(int i) const {
    for (int64_t r = 0; r < count; ++r) {
      Vector<T> y[N];
      for (int k = 0; k < N; ++k) {
        const auto v = load(grad_planes + r * grad_plane + cover.position[i + k] + distance);
        y[k] = Vector<T>(Bits<T>(v) & cover.fresh[i + k]);
      }
      correlate_row<T, N>(offset, row_first[r], row_first[r + 1], planes, cover.position.data() + i, y, result);
    }
  }
};

// How many rows of all images a chunk has, for planes of `channels` channels.
template <class T>
int64_t chunk_rows(const Problem& p, int64_t planes, int64_t halo) {
  const int64_t row_bytes = planes * p.columns.pitch() * sizeof(T), total = p.batch * p.rows.pitch();
  // Copying the rows around a chunk must not cost more than the chunk.
  const int64_t rows = std::max(kChunkBytes / row_bytes - halo, 3 * halo + 1);
  return std::clamp<int64_t>(rows, 1, std::max<int64_t>(1, total));
}

// Offset of every non-zero from an output's position, in rows of the weight's matrix.
template <class T>
void input_offsets(const Problem& p, const Layout<T>& layout, int32_t* offset) {
  std::vector<int64_t> tap(p.taps());
  for (int64_t t = 0; t < p.taps(); ++t) {
    const int64_t i = t / p.columns.kernel, k = t % p.columns.kernel;
    const int64_t phase = p.rows.phase(i) * p.columns.stride + p.columns.phase(k);
    tap[t] = phase * layout.plane + p.rows.shift(i) * layout.pitch + p.columns.shift(k);
  }
  const int64_t taps = p.taps(), channel = p.phases() * layout.plane;
  std::vector<int64_t> column(p.in_group() * taps);
  for (int64_t c = 0; c < p.in_group(); ++c) {
    for (int64_t t = 0; t < taps; ++t) column[c * taps + t] = c * channel + tap[t];
  }
  for (int64_t n = 0; n < p.out_channels; ++n) {
    const int64_t group = n / p.out_group() * p.in_group() * channel;
    for (int64_t j = p.row_first[n]; j < p.row_first[n + 1]; ++j) offset[j] = int32_t(group + column[p.column[j]]);
  }
}

// The transposed product: a row for every channel and phase of the input, with offsets into planes of the gradient.
template <class T>
void gradient_rows(const Problem& p, const Columns& c, const Layout<T>& layout, const T* values,
                   std::vector<int32_t>& first, int32_t* offset, T* value) {
  std::vector<int32_t> next(c.first, c.first + p.in_group() * p.taps());
  first.clear();
  int32_t count = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t channel = 0; channel < p.in_group(); ++channel) {
      for (int64_t phase = 0; phase < p.phases(); ++phase) {
        first.push_back(count);
        for (int64_t t = 0; t < p.taps(); ++t) {
          const int64_t i = t / p.columns.kernel, k = t % p.columns.kernel;
          if (p.rows.phase(i) * p.columns.stride + p.columns.phase(k) != phase) continue;
          const int64_t shift = p.rows.shift(i) * layout.pitch + p.columns.shift(k), at = channel * p.taps() + t;
          // Rows of a column ascend: those of a group follow those of the group before.
          for (; next[at] < c.first[at + 1] && c.row[next[at]] < (g + 1) * p.out_group(); ++next[at], ++count) {
            offset[count] = int32_t(c.row[next[at]] * layout.plane - shift);
            value[count] = values[c.origin[next[at]]];
          }
        }
      }
    }
  }
  first.push_back(count);
}

template <class T>
int conv2d(const Problem& p, const T* x, const T* values, const T* bias, T* y) {
  const int64_t above = p.rows.before(), below = p.rows.behind(), planes = p.in_channels * p.phases();
  const int64_t size = chunk_rows<T>(p, planes, above + below), image_pitch = p.rows.pitch();
  const int64_t chunks = divide_up(p.batch * image_pitch, size), nonzeros = p.nonzeros();
  const Layout<T> layout(p, size, above, below);
  if (planes * layout.plane > INT32_MAX) return 2;
  auto* offset = static_cast<int32_t*>(Scratch<kOffsets>::get(nonzeros * sizeof(int32_t)));
  if (!offset && nonzeros) return 1;
  input_offsets(p, layout, offset);
  const Rows<T> rows{p.row_first, offset, values};
  const int64_t plane = p.rows.outputs * p.columns.outputs, image = p.out_channels * plane;
  std::atomic<int> failed{0};
#pragma omp parallel num_threads(p.threads) if (p.parallel())
  {
    Cover<T> cover;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const Chunk chunk{i * size, std::min(size, p.batch * image_pitch - i * size), above, below};
      T* input = static_cast<T*>(Scratch<kInput>::get(planes * layout.plane * sizeof(T)));
      if (!input) {
        failed = 1;
        continue;
      }
      pack(x, p.batch, p.in_channels, p.rows.inputs, p.columns.inputs, p.rows.stride, p.columns.stride, image_pitch,
           chunk, layout, input);
      cover.build(chunk, layout, p.batch, image_pitch, p.rows.outputs, p.columns.outputs, image, 0, p.columns.outputs,
                  1);
      for_tiles(cover.count(), Multiply<T>{rows, 0, 1, p.out_channels, input, cover, bias, y, plane});
    }
  }
  return failed;
}

template <class T>
int conv2d_backward(const Problem& p, const Columns& c, const T* grad, const T* x, const T* values, T* grad_x,
                    T* grad_values) {
  const int64_t up = p.rows.before(), down = p.rows.behind(), planes = p.in_channels * p.phases();
  const int64_t size = chunk_rows<T>(p, std::max(planes, p.out_channels), up + down), image_pitch = p.rows.pitch();
  const int64_t chunks = divide_up(p.batch * image_pitch, size), nonzeros = p.nonzeros();
  // Taps that reach up from an output reach down from an input.
  const Layout<T> layout(p, size, up, down), grad_layout(p, size, down, up);
  if (std::max(planes, p.out_channels) * std::max(layout.plane, grad_layout.plane) > INT32_MAX) return 2;
  const int64_t parts = part_count(chunks);
  const BackwardScratch<T> scratch(nonzeros, parts);
  if (!scratch.complete) return 1;
  input_offsets(p, layout, scratch.offset);
  std::vector<int32_t> column_first;
  if (grad_x) gradient_rows(p, c, grad_layout, values, column_first, scratch.column_offset,
                            scratch.column_value);
  const Rows<T> columns{column_first.data(), scratch.column_offset, scratch.column_value};
  const int64_t height = p.rows.inputs, width = p.columns.inputs, plane = height * width;
  std::atomic<int> failed{0};
#pragma omp parallel num_threads(p.threads) if (p.parallel())
  {
    Cover<T> cover;
#pragma omp for schedule(static, 1)
    for (int64_t part = 0; part < parts; ++part) {
      T* result = grad_values ? scratch.start(part, nonzeros, grad_values) : nullptr;
      T* gradient = static_cast<T*>(Scratch<kGradient>::get(p.out_channels * grad_layout.plane * sizeof(T)));
      T* input = static_cast<T*>(Scratch<kInput>::get(planes * layout.plane * sizeof(T)));
      if (!gradient || !input) {
        failed = 1;
        continue;
      }
      for (int64_t i = part * chunks / parts; i < (part + 1) * chunks / parts; ++i) {
        const int64_t rows = std::min(size, p.batch * image_pitch - i * size);
        const Chunk chunk{i * size, rows, up, down}, grad_chunk{i * size, rows, down, up};
        pack(grad, p.batch, p.out_channels, p.rows.outputs, p.columns.outputs, int64_t(1), int64_t(1), image_pitch,
             grad_chunk, grad_layout, gradient);
        if (result) {
          pack(x, p.batch, p.in_channels, height, width, p.rows.stride, p.columns.stride, image_pitch, chunk, layout,
               input);
          cover.build(chunk, layout, p.batch, image_pitch, p.rows.outputs, p.columns.outputs, 0, 0, 0, 0);
          const int64_t distance = (down - up) * layout.pitch;
          for_tiles(cover.count(), Correlate<T>{p.row_first, scratch.offset, p.out_channels, input, gradient, distance,
                                                grad_layout.plane, cover, result});
        }
        for (int64_t phase = 0; grad_x && phase < p.phases(); ++phase) {
          const int64_t i = phase / p.columns.stride, k = phase % p.columns.stride;
          cover.build(grad_chunk, grad_layout, p.batch, image_pitch, p.rows.plane(i), p.columns.plane(k),
                      p.in_channels * plane, i * width + k, p.rows.stride * width, p.columns.stride);
          for_tiles(cover.count(), Multiply<T>{columns, phase, p.phases(), p.in_channels, gradient, cover, nullptr,
                                               grad_x, plane});
        }
      }
    }
  }
  if (failed) return 1;
  if (grad_values) add_parts(scratch.partial, parts, nonzeros, grad_values);
  return 0;
}

// From (batch, in_channels, out_channels, groups) and (inputs, outputs, kernel, stride, padding, dilation) of rows and
// of columns.
Problem problem(const int64_t* g, const int32_t* row_first, const int32_t* column, int64_t threads) {
  return {g[0], g[1], g[2], g[3], {g[4], g[5], g[6], g[7], g[8], g[9]}, {g[10], g[11], g[12], g[13], g[14], g[15]},
          row_first, column, int(threads)};
}

}  // namespace
}  // namespace nobp

#define NOBP_SPARSE_CONV2D(T, suffix)                                                                                 \
  extern "C" int nobp_sparse_conv2d_##suffix(const T* x, const T* values, const T* bias, const int32_t* row_first,    \
                                             const int32_t* column, const int64_t* geometry, int64_t threads, T* y) {     \
    return nobp::conv2d<T>(nobp::problem(geometry, row_first, column, threads), x, values, bias, y);                  \
  }                                                                                                                   \
  extern "C" int nobp_sparse_conv2d_backward_##suffix(                                                                \
      const T* grad, const T* x, const T* values, const int32_t* row_first, const int32_t* column,                    \
      const int32_t* column_first, const int32_t* row, const int32_t* origin, const int64_t* geometry, int64_t threads,   \
      T* grad_x, T* grad_values) {                                                                                    \
    return nobp::conv2d_backward<T>(nobp::problem(geometry, row_first, column, threads), {column_first, row, origin}, \
                                    grad, x, values, grad_x, grad_values);                                            \
  }

NOBP_SPARSE_CONV2D(float, float32)
NOBP_SPARSE_CONV2D(double, float64)
