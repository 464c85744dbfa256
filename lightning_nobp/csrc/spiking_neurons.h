// Leaky integrate-and-fire neurons between two input events, and what the sweeps over events share.
//
// Neurons are taken in blocks, whose weights stay in the second level of the cache while all samples pass. Rows of
// weights are padded by the caller to whole vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "threads.h"

namespace nobp {

constexpr int64_t kBlock = 128;

struct Rates {
  double v, i, theta;
};

// The input of a batch, and tables of the interval that follows each event.
template <class T>
struct Input {
  const T* times;
  const int64_t *index, *counts;
  T *length, *decay_v, *decay_i, *kernel;  // of intervals, filled by fill_intervals
  const T* weight;
  int64_t batch, events, inputs, neurons, pitch, spikes;
  Rates rates;
  double t_max;
  int threads;

  int64_t blocks() const { return (pitch + kBlock - 1) / kBlock; }
  bool parallel() const { return threads > 1 && batch * events * pitch >= kWorthThreads; }
};

// Of sizes (batch, events, inputs, neurons, pitch, spikes), numbers (1 / tau_v, 1 / tau_i, theta, t_max) and room for
// the tables (4, batch, events).
template <class T>
Input<T> input(const T* times, const int64_t* index, const int64_t* counts, const T* weight, const int64_t* sizes,
               const double* numbers, int64_t threads, T* intervals) {
  const int64_t all = sizes[0] * sizes[1];
  return {times, index, counts, intervals, intervals + all, intervals + 2 * all, intervals + 3 * all, weight,
          sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], {numbers[0], numbers[1], numbers[2]}, numbers[3],
          int(threads)};
}

// What is left of a potential and of a current after a time, and the potential that the current has caused.
struct Response {
  double v, i, kernel;
};

// (1 - exp(-d)) / d for d >= 0. Intervals between events are short, and short ones need no library function: up to a
// quarter the series is exact to the last bit, odd and even terms in two chains.
inline double mean_decay(double d) {
  if (d > 0.25) return -std::expm1(-d) / d;
  constexpr double c[] = {1,          1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
                          1. / 5040,  1. / 40320,  1. / 362880,  1. / 3628800,  1. / 39916800,  1. / 479001600,
                          1. / 6227020800};
  const double square = d * d;
  double even = c[12], odd = c[11];
  for (int n = 10; n > 0; n -= 2) even = even * square + c[n], odd = odd * square + c[n - 1];
  return even * square + c[0] - odd * d;
}

inline double decay(double d) { return d > 0.25 ? std::exp(-d) : 1 - d * mean_decay(d); }

inline Response response(double s, const Rates& rates) {
  const double slow = s * std::min(rates.v, rates.i), d = s * std::fabs(rates.v - rates.i);
  const double slow_decay = decay(slow), fast_decay = slow_decay * decay(d), kernel = s * slow_decay * mean_decay(d);
  return rates.v <= rates.i ? Response{slow_decay, fast_decay, kernel} : Response{fast_decay, slow_decay, kernel};
}

// Derivatives of the kernel with respect to the rates.
inline std::pair<double, double> kernel_rate_derivatives(double s, const Rates& rates) {
  const double slow = std::min(rates.v, rates.i), d = s * std::fabs(rates.v - rates.i);
  // The integrals of exp(-x d) and of x exp(-x d) over x from 0 to 1, the second by its series where it would cancel.
  const double whole = d ? -std::expm1(-d) / d : 1;
  double ramp = 0.5, term = 1;
  if (d < 1) {
    for (int n = 1; n < 18; ++n) term *= -d / n, ramp += term / (n + 2);
  } else {
    ramp = (1 - std::exp(-d) * (1 + d)) / (d * d);
  }
  const double scale = -s * s * std::exp(-s * slow), by_slow = scale * (whole - ramp), by_fast = scale * ramp;
  return rates.v <= rates.i ? std::pair{by_slow, by_fast} : std::pair{by_fast, by_slow};
}

// Fills the tables, and the derivatives of the kernel where there is room for them.
template <class T>
void fill_intervals(const Input<T>& in, T* by_v, T* by_i) {
#pragma omp parallel for schedule(static) num_threads(in.threads) if (in.parallel())
  for (int64_t b = 0; b < in.batch; ++b) {
    for (int64_t e = 0; e < in.counts[b]; ++e) {
      const int64_t event = b * in.events + e;
      const double end = e + 1 < in.counts[b] ? double(in.times[event + 1]) : in.t_max;
      const double s = end - double(in.times[event]);
      const Response r = response(s, in.rates);
      in.length[event] = T(s), in.decay_v[event] = T(r.v), in.decay_i[event] = T(r.i), in.kernel[event] = T(r.kernel);
      if (!by_v) continue;
      const auto [v, i] = kernel_rate_derivatives(s, in.rates);
      by_v[event] = T(v), by_i[event] = T(i);
    }
  }
}

// The spikes of a batch: `spikes` places a neuron, of which `counts` are filled. What only the gradient needs has the
// k-th spikes of all neurons side by side: later ones are rare, and pages of memory that none is in are never touched.
template <class T>
struct Spikes {
  T* times;  // (batch, neurons, spikes)
  int64_t* counts;
  int32_t* event;  // (batch, spikes, neurons): the last before the spike
  T* slope;        // (batch, spikes, neurons): of the potential at the threshold
};

}  // namespace nobp
