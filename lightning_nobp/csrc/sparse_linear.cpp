// y = x W^T + b of a sparse W, and its gradients. A tile of samples is transposed, so that a feature of all its samples
// is contiguous and one non-zero serves them all.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "scratch.h"
#include "sparse_product.h"

namespace nobp {
namespace {

// Inputs of this many bytes stay in its first level beside the sums.
#ifndef IB
#define IB 20
#define SH 6
#define KBL 128
#define TBY 256
#endif
constexpr int64_t kInnerBytes = IB * 1024;
constexpr int64_t kShortest = SH;
constexpr int64_t kBlock = KBL;
// Transposed inputs of this many bytes stay in the second level of the cache beside the weights.
constexpr int64_t kTileBytes = TBY * 1024;
// Less work than this is done before a second thread has woken up.
constexpr int64_t kParallelWork = 32768;

enum { kInput, kGradient, kOffsets, kColumnOffsets, kColumnValues, kPartials };

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

// The rows of a matrix in blocks, and each in runs of neighbouring columns whose inputs fit the first level of the
// cache: a block's runs of the first columns, then those of the next.
struct Plan {
  std::vector<Segment> segments;
  std::vector<int64_t> block_first;  // where the segments of each block of kBlock rows begin

  // `column_bytes`: what the inputs of one column take.
  Plan(const int32_t* first, const int32_t* column, int64_t rows, int64_t columns, int64_t column_bytes) {
    const int64_t average = rows ? first[rows] / rows : 0;
    // A run must be long enough to pay for loading and storing its sums.
    const int64_t parts = std::clamp<int64_t>(average / kShortest, 1, columns * column_bytes / kInnerBytes + 1);
    const int64_t width = (columns + parts - 1) / parts;
    std::vector<int32_t> next;
    for (int64_t r = 0; r < rows; r += kBlock) {
      block_first.push_back(segments.size());
      const int64_t count = std::min(kBlock, rows - r);
      next.assign(first + r, first + r + count);
      for (int64_t part = 0; part < parts; ++part) {
        const size_t begin = segments.size();
        for (int64_t i = 0; i < count; ++i) {
          const int32_t start = next[i];
          while (next[i] < first[r + i + 1] && column[next[i]] < (part + 1) * width) ++next[i];
          if (next[i] > start) segments.push_back({int32_t(i), start, next[i]});
        }
        sort_by_length(segments.data() + begin, segments.data() + segments.size());
      }
    }
    block_first.push_back(segments.size());
  }
};

// All rows for one tile of N vectors of samples.
template <class T, int N>
void multiply_tile(const Plan& plan, const NonZeros<T>& nonzeros, int64_t rows, const T* x, const T* bias,
                   int64_t samples, T* y) {
  constexpr int L = kLanes<T>;
  constexpr int64_t width = N * L;
  // Zeros, since rows that there are not are transposed too.
  alignas(64) T block[kBlock * width] = {};
  int32_t position[N];
  for (int i = 0; i < N; ++i) position[i] = i * L;
  for (int64_t b = 0; b * kBlock < rows; ++b) {
    const int64_t start = b * kBlock, count = std::min(kBlock, rows - start);
    for (int64_t r = 0; r < count; ++r) std::fill_n(block + r * width, width, bias ? bias[start + r] : T(0));
    for (int64_t s = plan.block_first[b]; s < plan.block_first[b + 1]; ++s) {
      const Segment& segment = plan.segments[s];
      T* out = block + segment.row * width;
      Vector<T> sum[N];
      for (int i = 0; i < N; ++i) sum[i] = load(out + i * L);
      multiply_segment<T, N>(nonzeros, segment, x, position, sum);
      for (int i = 0; i < N; ++i) store(out + i * L, sum[i]);
    }
    transpose_out(block, width, samples, count, y + start, rows);
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
  auto* offset = static_cast<int32_t*>(Scratch<kOffsets>::get(nonzeros * sizeof(int32_t)));
  if (!offset && nonzeros) return 1;
  for (int64_t j = 0; j < nonzeros; ++j) offset[j] = int32_t(p.column[j] * width);
  const Plan plan(p.row_first, p.column, p.outputs, p.inputs, width * sizeof(T));
  const NonZeros<T> rows{offset, values};
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
      multiply_tile<T, n>(plan, rows, p.outputs, tile, bias, samples, y + start * p.outputs);
    });
  }
  return failed;
}

// The columns of W as rows of its transpose, with their values in that order.
struct Columns {
  const int32_t *first, *row, *origin;
};

template <class T>
int linear_backward(const Problem& p, const Columns& c, const T* grad, const T* x, const T* values, T* grad_x,
                    T* grad_values) {
  constexpr int L = kLanes<T>;
  const int vectors = tile_vectors<T>(p, std::max(p.inputs, p.outputs));
  const int64_t width = vectors * L, tiles = (p.batch + width - 1) / width, nonzeros = p.nonzeros();
  auto* offset = static_cast<int32_t*>(Scratch<kOffsets>::get(nonzeros * sizeof(int32_t)));
  auto* column_offset = static_cast<int32_t*>(Scratch<kColumnOffsets>::get(nonzeros * sizeof(int32_t)));
  auto* column_value = static_cast<T*>(Scratch<kColumnValues>::get(nonzeros * sizeof(T)));
  // The sums of every weight's gradient are split the same way for any number of threads.
  const int64_t parts = std::clamp<int64_t>(tiles / 2, std::clamp<int64_t>(tiles, 1, 4), 16);
  T* partial = static_cast<T*>(Scratch<kPartials>::get((parts - 1) * nonzeros * sizeof(T)));
  if (nonzeros && (!offset || !column_offset || !column_value || (!partial && parts > 1))) return 1;
  for (int64_t j = 0; j < nonzeros; ++j) offset[j] = int32_t(p.column[j] * width);
  if (grad_x) {
    for (int64_t j = 0; j < nonzeros; ++j) {
      column_offset[j] = int32_t(c.row[j] * width);
      column_value[j] = values[c.origin[j]];
    }
  }
  const Plan plan(c.first, c.row, grad_x ? p.inputs : 0, p.outputs, width * sizeof(T));
  const NonZeros<T> columns{column_offset, column_value};
  std::atomic<int> failed{0};
#pragma omp parallel for schedule(static, 1) num_threads(p.threads) if (p.parallel())
  for (int64_t part = 0; part < parts; ++part) {
    T* result = !grad_values ? nullptr : part ? partial + (part - 1) * nonzeros : grad_values;
    if (result) std::fill_n(result, nonzeros, T(0));
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
        if (result) correlate_tile<T, n>(p.row_first, offset, p.outputs, tile, grad_tile, result);
        if (grad_x) {
          multiply_tile<T, n>(plan, columns, p.inputs, grad_tile, static_cast<const T*>(nullptr), samples,
                              grad_x + start * p.inputs);
        }
      });
    }
  }
  if (failed) return 1;
  if (grad_values) {
    for (int64_t part = 1; part < parts; ++part) {
      const T* more = partial + (part - 1) * nonzeros;
      for (int64_t j = 0; j < nonzeros; ++j) grad_values[j] += more[j];
    }
  }
  return 0;
}

}  // namespace
}  // namespace nobp

#define NOBP_SPARSE_LINEAR(T, suffix)                                                                                 \
  extern "C" int nobp_sparse_linear_##suffix(const T* x, const T* values, const T* bias, const int32_t* row_first,    \
                                             const int32_t* column, int64_t batch, int64_t inputs, int64_t outputs,   \
                                             int64_t threads, T* y) {                                                     \
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
