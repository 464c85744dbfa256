// The two inner loops behind every sparse layer. Both run over the non-zeros of one row, and are vectorised over
// positions: samples of a batch or pixels of images. A non-zero finds its input row by an offset from the position.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "simd.h"

namespace nobp {

// As many vectors as there are accumulators without spilling, from SSE's 16 registers on.
constexpr int kTile = 8;

// Non-zeros of a matrix by rows: those of row r are first[r] <= j < first[r + 1].
template <class T>
struct Rows {
  const int32_t* first;
  const int32_t* offset;  // from a position to the non-zero's input
  const T* value;
};

// sum[i] += value[j] * x[position[i] + offset[j]], summed over the row. Few vectors are summed in several chains, since
// one multiply-add must wait for the one before it.
template <class T, int N>
inline void multiply_row(const Rows<T>& rows, int row, const T* x, const int32_t* position, Vector<T>* sum) {
  constexpr int chains = kTile / N > 4 ? 4 : kTile / N;
  Vector<T> partial[chains][N] = {};
  const T* base[N];
  for (int i = 0; i < N; ++i) base[i] = x + position[i];
  int j = rows.first[row];
  const int end = rows.first[row + 1];
  for (; j + chains <= end; j += chains) {
    for (int c = 0; c < chains; ++c) {
      const Vector<T> value = broadcast(rows.value[j + c]);
      const int64_t offset = rows.offset[j + c];
      for (int i = 0; i < N; ++i) partial[c][i] += value * load(base[i] + offset);
    }
  }
  for (; j < end; ++j) {
    const Vector<T> value = broadcast(rows.value[j]);
    const int64_t offset = rows.offset[j];
    for (int i = 0; i < N; ++i) partial[0][i] += value * load(base[i] + offset);
  }
  for (int c = 1; c < chains; ++c) {
    for (int i = 0; i < N; ++i) partial[0][i] += partial[c][i];
  }
  for (int i = 0; i < N; ++i) sum[i] += partial[0][i];
}

// result[j] += sum over positions of y[i] * x[position[i] + offset[j]], for every non-zero j of the row.
template <class T, int N>
inline void correlate_row(const int32_t* offset, int first, int end, const T* x, const int32_t* position,
                          const Vector<T>* y, T* result) {
  constexpr int L = kLanes<T>;
  const T* base[N];
  for (int i = 0; i < N; ++i) base[i] = x + position[i];
  for (int j = first; j < end; j += L) {
    const int last = end - 1 - j;
    const Vector<T> sums = sum_lanes<T, 0, L>([&](int lane) {
      // Past the row's end its last non-zero again: computed, and not added.
      const int64_t at = offset[j + (lane < last ? lane : last)];
      Vector<T> sum = y[0] * load(base[0] + at);
      for (int i = 1; i < N; ++i) sum += y[i] * load(base[i] + at);
      return sum;
    });
    if (last >= L - 1) {
      store(result + j, load(result + j) + sums);
    } else {
      for (int lane = 0; lane <= last; ++lane) result[j + lane] += sums[lane];
    }
  }
}

// Less work than this is done before a second thread has woken up.
constexpr int64_t kParallelWork = 32768;

// The columns of a weight's matrix as rows of its transpose: where each begins, the row of every non-zero in it, and the
// non-zero's place in the order of rows.
struct Columns {
  const int32_t *first, *row, *origin;
};

// The sums of every weight's gradient are split the same way for any number of threads: into this many parts.
inline int64_t part_count(int64_t tiles) {
  return std::clamp<int64_t>(tiles / 2, std::clamp<int64_t>(tiles, 1, 4), 16);
}

// Add the parts but the first, which is in `sum`, always in this order.
template <class T>
void add_parts(const T* others, int64_t parts, int64_t count, T* sum) {
  for (int64_t part = 1; part < parts; ++part, others += count) {
    for (int64_t j = 0; j < count; ++j) sum[j] += others[j];
  }
}

// What a backward pass keeps for the time of a call.
template <class T>
struct BackwardScratch {
  int32_t *offset, *column_offset;
  T *column_value, *partial;
  bool complete;  // false where there is no memory

  BackwardScratch(int64_t nonzeros, int64_t parts) {
    offset = static_cast<int32_t*>(Scratch<kOffsets>::get(nonzeros * sizeof(int32_t)));
    column_offset = static_cast<int32_t*>(Scratch<kColumnOffsets>::get(nonzeros * sizeof(int32_t)));
    column_value = static_cast<T*>(Scratch<kColumnValues>::get(nonzeros * sizeof(T)));
    partial = static_cast<T*>(Scratch<kPartials>::get((parts - 1) * nonzeros * sizeof(T)));
    complete = !nonzeros || (offset && column_offset && column_value && (partial || parts == 1));
  }

  // Where part `part` is summed up, set to zero.
  T* start(int64_t part, int64_t nonzeros, T* first) const {
    T* result = part ? partial + (part - 1) * nonzeros : first;
    std::fill_n(result, nonzeros, T(0));
    return result;
  }
};

// Call `tile.template run<N>(i)` for vectors i, i + 1, ..., i + N - 1, until all `count` are done.
template <class Tile>
inline void for_tiles(int count, const Tile& tile) {
  int i = 0;
  for (; i + kTile <= count; i += kTile) tile.template run<kTile>(i);
  if (i + 4 <= count) tile.template run<4>(i), i += 4;
  if (i + 2 <= count) tile.template run<2>(i), i += 2;
  if (i < count) tile.template run<1>(i);
}

}  // namespace nobp
