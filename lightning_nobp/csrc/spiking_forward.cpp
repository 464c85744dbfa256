// Exact spike times of leaky integrate-and-fire neurons, by a sweep over each sample's input events. Between two events
// all neurons obey the same linear equations, so that one vector pass of multiply-adds carries them to the next event;
// the few that may cross the threshold on the way are found in it and searched one by one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simd.h"
#include "spiking_neurons.h"

namespace nobp {
namespace {

constexpr int64_t kChunk = 8;  // samples that a thread takes at once

struct State {
  double v, i;

  double slope(const Rates& rates) const { return i - rates.v * v; }
  // How fast the slope falls.
  double bend(const Rates& rates) const { return rates.v * slope(rates) + rates.i * i; }
  State after(double s, const Rates& rates) const {
    const Response r = response(s, rates);
    return {v * r.v + i * r.kernel, i * r.i};
  }
};

// Whether a neuron may cross the threshold on its way from `start` to `end`: it ends above, or it has risen and fallen
// and the tangent at the start, which is above the potential as long as that rises, reaches the threshold. Where all
// has decayed to 0, it has fallen. A current that does not outweigh the leak at the threshold never lifts it there.
inline bool may_cross(State start, State end, double length, const Rates& rates) {
  const bool hump = start.v + start.slope(rates) * length >= rates.theta && end.slope(rates) <= 0;
  return start.i > rates.theta * rates.v && (end.v >= rates.theta || hump);
}

// A time after the start of a search, and the state then.
struct Point {
  double time;
  State state;
};

// Where Newton's method begins: at the parabola's crossing, which is a little late, or at the start where that has
// passed the peak.
inline Point first_guess(State start, double length, const Rates& rates) {
  const double missing = rates.theta - start.v, slope = start.slope(rates);
  const double square = slope * slope - 2 * missing * start.bend(rates);
  const double time = square > 0 ? 2 * missing / (slope + std::sqrt(square)) : 0;
  if (!(time > 0 && time <= length)) return {0, start};
  const State state = start.after(time, rates);
  return state.slope(rates) > 0 ? Point{time, state} : Point{0, start};
}

// When and with which current the potential reaches the threshold; the time is negative if it does not within `length`.
// The potential is concave while it rises: Newton's method approaches from below, and without a crossing it leaves the
// rise.
template <class T>
Point crossing(State start, double length, bool is_certain, const Rates& rates) {
  constexpr double kPrecision = std::numeric_limits<T>::epsilon() / 2;
  constexpr int kMaxSteps = 100;  // at a tangent each step only halves the distance
  constexpr Point kNone{-1, {}};
  if (start.slope(rates) <= 0) return kNone;
  Point now = first_guess(start, length, rates);
  for (int i = 0; i < kMaxSteps; ++i) {
    const double slope = now.state.slope(rates);
    if (slope <= 0) return is_certain ? now : kNone;
    const double step = (rates.theta - now.state.v) / slope, time = std::max(now.time + step, 0.0);
    if (time > length) return is_certain ? Point{length, start.after(length, rates)} : kNone;
    // What is left is the square of the step, of the time and of the current's decay alike.
    if (now.state.bend(rates) * step * step <= 2 * slope * kPrecision * time) {
      return {time, {rates.theta, now.state.i * (1 - rates.i * step)}};
    }
    now = {time, start.after(time, rates)};
  }
  return now;
}

// The spikes of one neuron in the interval after event e, from `start` to `end` if it had none. Changes `end`.
template <class T>
void fire(const Input<T>& in, const Spikes<T>& out, int64_t sample, int64_t e, int64_t neuron, State start,
          State& end) {
  const int64_t event = sample * in.events + e, cell = sample * in.neurons + neuron;
  const double length = in.length[event];
  int64_t& count = out.counts[cell];
  for (double from = 0; may_cross(start, end, length - from, in.rates);) {
    const Point spike = crossing<T>(start, length - from, end.v >= in.rates.theta, in.rates);
    if (spike.time < 0) return;
    from += spike.time;
    start = {0, spike.state.i};
    // Sums of times are rounded: none is after the end.
    out.times[cell * in.spikes + count] = T(std::min(in.times[event] + from, in.t_max));
    const int64_t place = (sample * in.spikes + count) * in.neurons + neuron;
    out.event[place] = int32_t(e);
    out.slope[place] = T(std::max(start.i - in.rates.theta * in.rates.v, double(std::numeric_limits<T>::min())));
    if (++count == in.spikes) {
      // Never greater than anything: silent from now on.
      end.v = std::numeric_limits<double>::quiet_NaN();
      return;
    }
    end = start.after(length - from, in.rates);
  }
}

// A vector of neurons on its way from one event to the next.
template <class T>
struct Lanes {
  Vector<T> v, i, end_v, end_i;
};

// The neurons that may fire, one by one. Apart, so that the vector pass keeps its registers.
template <class T>
__attribute__((noinline)) void search(const Input<T>& in, const Spikes<T>& out, int64_t sample, int64_t e,
                                      int64_t neuron, Bits<T> may, Lanes<T> lanes, T* potential, T* current) {
  for (int lane = 0; lane < kLanes<T> && neuron + lane < in.neurons; ++lane) {
    if (!may[lane]) continue;
    State end{lanes.end_v[lane], lanes.end_i[lane]};
    fire(in, out, sample, e, neuron + lane, State{lanes.v[lane], lanes.i[lane]}, end);
    potential[lane] = T(end.v);
    current[lane] = T(end.i);
  }
}

// One sample and one block of neurons.
template <class T>
void sweep(const Input<T>& in, const Spikes<T>& out, int64_t sample, int64_t first, int64_t width) {
  alignas(64) T potential[kBlock] = {}, current[kBlock] = {};
  const Vector<T> theta = broadcast(T(in.rates.theta)), rate = broadcast(T(in.rates.v));
  const Vector<T> leak = broadcast(T(in.rates.theta * in.rates.v));
  for (int64_t e = 0; e < in.counts[sample]; ++e) {
    const int64_t event = sample * in.events + e;
    const T* weight = in.weight + in.index[event] * in.pitch + first;
    const Vector<T> length = broadcast(in.length[event]), kernel = broadcast(in.kernel[event]);
    const Vector<T> decay_v = broadcast(in.decay_v[event]), decay_i = broadcast(in.decay_i[event]);
    for (int64_t n = 0; n < width; n += kLanes<T>) {
      const Vector<T> v = load(potential + n), i = load(current + n) + load(weight + n);
      const Vector<T> end_v = v * decay_v + i * kernel, end_i = i * decay_i;
      const Bits<T> hump = (v + (i - rate * v) * length >= theta) & (end_i - rate * end_v <= 0);
      const Bits<T> may = ((end_v >= theta) | hump) & (i > leak);
      store(potential + n, end_v);
      store(current + n, end_i);
      if (any<T>(may)) {
        search(in, out, sample, e, first + n, may, Lanes<T>{v, i, end_v, end_i}, potential + n, current + n);
      }
    }
  }
}

template <class T>
void forward(const Input<T>& in, const Spikes<T>& out) {
  fill_intervals<T>(in, nullptr, nullptr);
  const int64_t blocks = in.blocks(), chunks = (in.batch + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(dynamic) num_threads(in.threads) if (in.parallel())
  for (int64_t task = 0; task < blocks * chunks; ++task) {
    const int64_t first = task / chunks * kBlock, chunk = task % chunks;
    const int64_t width = std::min(kBlock, in.pitch - first);
    for (int64_t b = chunk * kChunk; b < std::min(in.batch, (chunk + 1) * kChunk); ++b) sweep(in, out, b, first, width);
  }
}

}  // namespace
}  // namespace nobp

#define NOBP_SPIKING_FORWARD(T, suffix)                                                                              \
  extern "C" int nobp_spiking_forward_##suffix(                                                                      \
      const T* times, const int64_t* index, const int64_t* counts, const T* weight, const int64_t* sizes,            \
      const double* numbers, int64_t threads, T* intervals, T* spikes, int64_t* spike_counts, int32_t* event,        \
      T* slope) {                                                                                                    \
    nobp::forward<T>(nobp::input(times, index, counts, weight, sizes, numbers, threads, intervals),                  \
                     {spikes, spike_counts, event, slope});                                                          \
    return 0;                                                                                                        \
  }

NOBP_SPIKING_FORWARD(float, float32)
NOBP_SPIKING_FORWARD(double, float64)
