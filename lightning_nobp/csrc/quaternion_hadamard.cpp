// The transform Had of four components in one pass over memory, where sums of two at a time take six:
//   Had(a) = (a0 + a1 + a2 + a3, a0 - a1 + a2 - a3, a0 + a1 - a2 - a3, a0 - a1 - a2 + a3)
// Sums are taken in the order of the readable version, so that results are the same to the last bit.

#include <cstdint>

#include "simd.h"

namespace nobp {
namespace {

// Below, a second thread costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 16;

// V is a vector, or a number for what is left of a row. All is read before it is written: `out` may be `in`.
template <class V, class T>
inline void butterfly(const T* const* in, T* const* out, int64_t from, int64_t to, bool negated) {
  V a[4];
  for (int c = 0; c < 4; ++c) std::memcpy(&a[c], in[c] + from, sizeof(V));
  if (negated) a[0] = -a[0];
  const V s = a[0] + a[1], d = a[0] - a[1], t = a[2] + a[3], u = a[2] - a[3];
  const V had[4] = {s + t, d + u, s - t, d - u};
  for (int c = 0; c < 4; ++c) std::memcpy(out[c] + to, &had[c], sizeof(V));
}

template <class T>
void hadamard(const T* const* in, T* const* out, int64_t in_stride, int64_t out_stride, int64_t rows, int64_t width,
              bool negated, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * width >= kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = row * in_stride, to = row * out_stride;
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) butterfly<Vector<T>>(in, out, from + i, to + i, negated);
    for (; i < width; ++i) butterfly<T>(in, out, from + i, to + i, negated);
  }
}

}  // namespace
}  // namespace nobp

#define NOBP_QUATERNION_HADAMARD(T, suffix)                                                                        \
  extern "C" void nobp_quaternion_hadamard_##suffix(                                                               \
      const T* in0, const T* in1, const T* in2, const T* in3, T* out0, T* out1, T* out2, T* out3,                  \
      int64_t in_stride, int64_t out_stride, int64_t rows, int64_t width, int64_t negated, int64_t threads) {      \
    const T* in[] = {in0, in1, in2, in3};                                                                          \
    T* out[] = {out0, out1, out2, out3};                                                                           \
    nobp::hadamard<T>(in, out, in_stride, out_stride, rows, width, negated, int(threads));                         \
  }

NOBP_QUATERNION_HADAMARD(float, float32)
NOBP_QUATERNION_HADAMARD(double, float64)
