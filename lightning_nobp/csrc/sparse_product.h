// The two inner loops behind every sparse layer. Both run over the non-zeros of one row, and are vectorised over
// positions: samples of a batch or pixels of images. A non-zero finds its input row by an offset from the position.
#pragma once

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
