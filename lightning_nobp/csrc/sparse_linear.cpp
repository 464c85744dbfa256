// y = x W^T + b of a sparse W, and its gradients. A tile of samples is transposed, so that a feature of all its samples
// is contiguous and one non-zero serves them all.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "sparse_product.h"

namespace nobp {
namespace {

// Transposed inputs of this many bytes stay in the second level of the cache beside the weights.
constexpr int64_t kTileBytes = 512 * 1024;

struct Problem {
  int64_t batch, inputs, outputs;
  const int32_t *row_first, *column;
  int threads;

  int64_t nonzeros() const { return row_first[outputs]; }
  bool parallel() const { return threads > 1 && nonzeros() * batch > kParallelWork; }
};

// How many vectors of samples a tile has.
template <class T>
int tile_vectors(const Problem& p, int64_t features) {
  const int64_t needed = (p.batch + kLanes<T> - 1) / kLanes<T>;
  int vectors = kTile;
  while (vectors > 1 && (vectors / 2 >= needed || features * vectors * kVectorBytes > kTileBytes)) vectors /= 2;
  return vectors;
}

// tile[f][s] = x[s][f] for `samples` rows of x; zero for samples that there are not.
template <class T>
void transpose_in(const T* x, int64_t features, int64_t samples, int64_t width, T* tile) {
  constexpr int L = kLanes<T>;
  for (int64_t s = 0; s < width; s += L) {
    const int64_t rows = std::min<int64_t>(L, samples - s);
    int64_t f = 0;
    for (; rows == L && f + L <= features; f += L) {
      Vector<T> square[L];
      for (int i = 0; i < L; ++i) square[i] = load(x + (s + i) * features + f);
      transpose<T>(square);
      for (int i = 0; i < L; ++i) store(tile + (f + i) * width + s, square[i]);
    }
    for (; f < features; ++f) {
      for (int i = 0; i < L; ++i) tile[f * width + s + i] = i < rows ? x[(s + i) * features + f] : T(0);
    }
  }
}

// y[s][r] = block[r][s] for `rows` outputs, up to kBlock, of `samples` samples.
template <class T>
void transpose_out(const T* block, int64_t width, int64_t samples, int64_t rows, T* y, int64_t features) {
  constexpr int L = kLanes<T>;
  for (int64_t s = 0; s < samples; s += L) {
    const int64_t here = std::min<int64_t>(L, samples - s);
    for (int64_t r = 0; r < rows; r += L) {
      Vector<T> square[L];
      for (int i = 0; i < L; ++i) square[i] = load(block + (r + i) * width + s);
      transpose<T>(square);
      for (int64_t i = 0; i < here; ++i) {
        T* out = y + (s + i) * features + r;
        if (r + L <= rows) {
          store(out, square[i]);
        } else {
          for (int64_t k = 0; k < rows - r; ++k) out[k] = square[i][k];
        }
      }
    }
  }
}

// All rows for one tile of N vectors of samples.
template <class T, int N>
void multiply_tile(const Rows<T>& rows, int64_t count, const T* x, const T* bias, int64_t samples, T* y) {
  constexpr int L = kLanes<T>;
  constexpr int64_t width = N * L;
  // Samples lie far apart in y, often in the same set of the cache: several lines of each are written together.
  constexpr int64_t kBlock = 64 / sizeof(T) < kLanes<T> ? kLanes<T> : 64 / sizeof(T);
  // Zeros, since rows that there are not are transposed too.
  alignas(64) T block[kBlock * width] = {};
  int32_t position[N];
  for (int i = 0; i < N; ++i) position[i] = i * L;
  for (int64_t n = 0; n < count; n += kBlock) {
    const int64_t here = std::min<int64_t>(kBlock, count - n);
    for (int64_t r = 0; r < here; ++r) {
      Vector<T> sum[N];
      for (int i = 0; i < N; ++i) sum[i] = broadcast(bias ? bias[n + r] : T(0));
      multiply_row<T, N>(rows, int(n + r), x, position, sum);
      for (int i = 0; i < N; ++i) store(block + r * width + i * L, sum[i]);
    }
    transpose_out(block, width, samples, here, y + n, count);
  }
}

template <class T, int N>
void correlate_tile(const int32_t* first, const int32_t* offset, int64_t count, const T* x, const T* y, T* result) {
  constexpr int L = kLanes<T>;
  int32_t position[N];
  for (int i = 0; i < N; ++i) position[i] = i * L;
  for (int64_t n = 0; n < count; ++n) {
    Vector<T> here[N];
    for (int i = 0; i < N; ++i) here[i] = load(y + (n * N + i) * L);
    correlate_row<T, N>(offset, first[n], first[n + 1], x, position, here, result);
  }
}

// Call `body` with the number of vectors as a constant.
template <class Body>
void with_vectors(int vectors, const Body& body) {
  switch (vectors) {
    case 1: return body(std::integral_constant<int, 1>());
    case 2: return body(std::integral_constant<int, 2>());
    case 4: return body(std::integral_constant<int, 4>());
    default: return body(std::integral_constant<int, kTile>());
  }
}

template <class T>
int linear(const Problem& p, const T* x, const T* values, const T* bias, T* y) {
  const int vectors = tile_vectors<T>(p, p.inputs);
  const int64_t width = vectors * kLanes<T>, tiles = (p.batch + width - 1) / width, nonzeros = p.nonzeros();
  if (p.inputs * width > INT32_MAX) return 2;
  auto* offset = static_cast<int32_t*>(Scratch<kOffsets>::get(nonzeros * sizeof(int32_t)));
  if (!offset && nonzeros) return 1;
  for (int64_t j = 0; j < nonzeros; ++j) offset[j] = int32_t(p.column[j] * width);
  const Rows<T> rows{p.row_first, offset, values};
  std::atomic<int> failed{0};
#pragma omp parallel for schedule(dynamic) num_threads(p.threads) if (p.parallel())
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t start = t * width, samples = std::min(width, p.batch - start);
    T* tile = static_cast<T*>(Scratch<kInput>::get(p.inputs * width * sizeof(T)));
    if (!tile && p.inputs) {
      failed = 1;
      continue;
    }
    transpose_in(x + start * p.inputs, p.inputs, samples, width, tile);
    with_vectors(vectors, [&](auto n) {
      multiply_tile<T, n>(rows, p.outputs, tile, bias, samples, y + start * p.outputs);
    });
  }
  return failed;
}

template <class T>
int linear_backward(const Problem& p, const Columns& c, const T* grad, const T* x, const T* values, T* grad_x,
                    T* grad_values) {
  constexpr int L = kLanes<T>;
  const int vectors = tile_vectors<T>(p, std::max(p.inputs, p.outputs));
  const int64_t width = vectors * L, tiles = (p.batch + width - 1) / width, nonzeros = p.nonzeros();
  if (std::max(p.inputs, p.outputs) * width > INT32_MAX) return 2;
  const int64_t parts = part_count(tiles);
  const BackwardScratch<T> scratch(nonzeros, parts);
  if (!scratch.complete) return 1;
  for (int64_t j = 0; j < nonzeros; ++j) scratch.offset[j] = int32_t(p.column[j] * width);
  if (grad_x) {
    for (int64_t j = 0; j < nonzeros; ++j) {
      scratch.column_offset[j] = int32_t(c.row[j] * width);
      scratch.column_value[j] = values[c.origin[j]];
    }
  }
  const Rows<T> columns{c.first, scratch.column_offset, scratch.column_value};
  std::atomic<int> failed{0};
#pragma omp parallel for schedule(static, 1) num_threads(p.threads) if (p.parallel())
  for (int64_t part = 0; part < parts; ++part) {
    T* result = grad_values ? scratch.start(part, nonzeros, grad_values) : nullptr;
    T* grad_tile = static_cast<T*>(Scratch<kGradient>::get(p.outputs * width * sizeof(T)));
    T* tile = static_cast<T*>(Scratch<kInput>::get(p.inputs * width * sizeof(T)));
    if ((!grad_tile && p.outputs) || (!tile && p.inputs)) {
      failed = 1;
      continue;
    }
    for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; ++t) {
      const int64_t start = t * width, samples = std::min(width, p.batch - start);
      transpose_in(grad + start * p.outputs, p.outputs, samples, width, grad_tile);
      if (result) transpose_in(x + start * p.inputs, p.inputs, samples, width, tile);
      with_vectors(vectors, [&](auto n) {
        if (result) correlate_tile<T, n>(p.row_first, scratch.offset, p.outputs, tile, grad_tile, result);
        if (grad_x) {
          multiply_tile<T, n>(columns, p.inputs, grad_tile, static_cast<const T*>(nullptr), samples,
                              grad_x + start * p.inputs);
        }
      });
    }
  }
  if (failed) return 1;
  if (grad_values) add_parts(scratch.partial, parts, nonzeros, grad_values);
  return 0;
}

}  // namespace
}  // namespace nobp

#define NOBP_SPARSE_LINEAR(T, suffix)                                                                                 \
  extern "C" int nobp_sparse_linear_##suffix(const T* x, const T* values, const T* bias, const int32_t* row_first,    \
                                             const int32_t* column, int64_t batch, int64_t inputs, int64_t outputs,   \
                                             int64_t threads, T* y) {                                                 \
    return nobp::linear<T>({batch, inputs, outputs, row_first, column, int(threads)}, x, values, bias, y);                 \
  }                                                                                                                   \
  extern "C" int nobp_sparse_linear_backward_##suffix(                                                                \
      const T* grad, const T* x, const T* values, const int32_t* row_first, const int32_t* column,                    \
      const int32_t* column_first, const int32_t* row, const int32_t* origin, int64_t batch, int64_t inputs,          \
      int64_t outputs, int64_t threads, T* grad_x, T* grad_values) {                                                      \
    return nobp::linear_backward<T>({batch, inputs, outputs, row_first, column, int(threads)},                             \
                                    {column_first, row, origin}, grad, x, values, grad_x, grad_values);               \
  }

NOBP_SPARSE_LINEAR(float, float32)
NOBP_SPARSE_LINEAR(double, float64)
