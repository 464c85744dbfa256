// Gradients of spike times, by a sweep over each sample's input events from the last to the first. They are made of sums
// over later spikes of a multiplier p: dL/dt over the slope of the potential, what later resets hand on included.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "scratch.h"
#include "simd.h"
#include "spiking_neurons.h"

namespace nobp {
namespace {

// What gradients are made of. Null where nobody asks; parts and blocks are summed by the caller.
template <class T>
struct Gradients {
  const T* spikes;         // (batch, neurons, spikes)
  T* times;                // (blocks, batch, events)
  T* weight;               // (parts, inputs, pitch)
  double* rates;           // (parts, blocks, 2): of 1 / tau_v and of 1 / tau_i
  T *by_v, *by_i;          // derivatives of the kernel over each interval, for `rates`
  int64_t parts;
  double p_max;            // largest multiplier
};

// A spike in the list of its event.
template <class T>
struct Pull {
  int32_t next, neuron;  // in its block
  T time, multiplier;
};

// Sums over later spikes, s after the present: of p e^{-s / tau_v}, p K(s) and p e^{-s / tau_i}; for the rates also of
// p s e^{-s / tau_v} and of p times the kernel's derivatives.
template <class T>
struct Sums {
  alignas(64) T v[kBlock] = {}, kernel[kBlock] = {}, i[kBlock] = {};
  alignas(64) T late[kBlock] = {}, by_v[kBlock] = {}, by_i[kBlock] = {};
};

// Lists the spikes of a sample's block by event, the heads of the lists in `head`. Returns the last event with one.
template <class T>
int64_t list_pulls(const Input<T>& in, const Spikes<T>& out, const Gradients<T>& g, int64_t sample, int64_t first,
                   int64_t width, int32_t* head, Pull<T>* pulls, double* rates) {
  std::fill_n(head, in.counts[sample], -1);
  int32_t used = 0, last = -1;
  for (int64_t n = 0; n < std::min(width, in.neurons - first); ++n) {
    const int64_t cell = sample * in.neurons + first + n;
    // Sums over later spikes of the neuron: p e^{-s / tau_v} and p s e^{-s / tau_v}.
    double carry = 0, late = 0;
    for (int64_t k = std::min(out.counts[cell], in.spikes) - 1; k >= 0; --k) {
      const int64_t spike = cell * in.spikes + k, place = (sample * in.spikes + k) * in.neurons + first + n;
      const T time = out.times[spike];
      if (carry || late) {
        const double gap = double(out.times[spike + 1]) - double(time);
        const double decay = in.rates.v ? std::exp(-gap * in.rates.v) : 1;
        late = (late + gap * carry) * decay;
        carry *= decay;
        if (rates) rates[0] -= in.rates.theta * late;
      }
      const double grad = double(g.spikes[spike]) + in.rates.theta * in.rates.v * carry;
      const double multiplier = std::clamp(grad / double(out.slope[place]), -g.p_max, g.p_max);
      carry += multiplier;
      if (!multiplier) continue;
      const int32_t e = out.event[place];
      // Of a record that was made of other events.
      if (e < 0 || e >= in.counts[sample]) continue;
      pulls[used] = {head[e], int32_t(n), time, T(multiplier)};
      head[e] = used++;
      last = std::max(last, e);
    }
  }
  return last;
}

// The list's spikes join the sums at the time of their event.
template <class T, bool kRates>
void add_pulls(const Input<T>& in, T time, int32_t head, const Pull<T>* pulls, Sums<T>& sums) {
  for (int32_t j = head; j >= 0; j = pulls[j].next) {
    const int32_t n = pulls[j].neuron;
    const double s = double(pulls[j].time) - double(time), p = pulls[j].multiplier;
    const Response r = response(s, in.rates);
    sums.v[n] += T(p * r.v);
    sums.kernel[n] += T(p * r.kernel);
    sums.i[n] += T(p * r.i);
    if constexpr (kRates) {
      const auto [by_v, by_i] = kernel_rate_derivatives(s, in.rates);
      sums.late[n] += T(p * s * r.v);
      sums.by_v[n] += T(p * by_v);
      sums.by_i[n] += T(p * by_i);
    }
  }
}

template <class T>
inline double total(Vector<T> lanes) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += lanes[lane];
  return sum;
}

// Gradients at event e of a sample, and the sums carried to the event before it.
template <class T, bool kRates>
void pass(const Input<T>& in, const Gradients<T>& g, int64_t event, int64_t before, int64_t width, const T* weight,
          T* grad_weight, T* grad_time, double* rates, Sums<T>& sums) {
  constexpr int L = kLanes<T>;
  const Vector<T> kernel = broadcast(in.kernel[before]), decay_v = broadcast(in.decay_v[before]);
  const Vector<T> decay_i = broadcast(in.decay_i[before]), rate = broadcast(T(in.rates.v));
  Vector<T> time = {}, rate_v = {}, rate_i = {};
  for (int64_t n = 0; n < width; n += L) {
    const Vector<T> v = load(sums.v + n), k = load(sums.kernel + n);
    store(sums.v + n, v * decay_v);
    store(sums.kernel + n, k * decay_i + v * kernel);
    if (grad_weight) store(grad_weight + n, load(grad_weight + n) - k);
    if (grad_time) {
      const Vector<T> i = load(sums.i + n);
      store(sums.i + n, i * decay_i);
      time += load(weight + n) * (i - rate * k);
    }
    if constexpr (kRates) {
      const Vector<T> length = broadcast(in.length[before]), late = load(sums.late + n), w = load(weight + n);
      const Vector<T> by_v = load(sums.by_v + n), by_i = load(sums.by_i + n);
      rate_v -= w * by_v;
      rate_i -= w * by_i;
      store(sums.late + n, (late + length * v) * decay_v);
      store(sums.by_v + n, by_v * decay_i - late * kernel + v * broadcast(g.by_v[before]));
      store(sums.by_i + n, (by_i - length * k) * decay_i + v * broadcast(g.by_i[before]));
    }
  }
  if (grad_time) *grad_time = T(total<T>(time));
  if constexpr (kRates) rates[0] += total<T>(rate_v), rates[1] += total<T>(rate_i);
}

// One sample and one block of neurons, whose part of the weight's gradient begins at `grad_weight`.
template <class T, bool kRates>
void sweep_back(const Input<T>& in, const Spikes<T>& out, const Gradients<T>& g, int64_t sample, int64_t first,
                int64_t width, int32_t* head, Pull<T>* pulls, T* grad_weight, double* rates) {
  Sums<T> sums;
  const int64_t start = sample * in.events;
  T* grad_times = g.times ? g.times + first / kBlock * in.batch * in.events + start : nullptr;
  for (int64_t e = list_pulls(in, out, g, sample, first, width, head, pulls, rates); e >= 0; --e) {
    add_pulls<T, kRates>(in, in.times[start + e], head[e], pulls, sums);
    const int64_t row = in.index[start + e] * in.pitch + first;
    pass<T, kRates>(in, g, start + e, start + std::max<int64_t>(e - 1, 0), width, in.weight + row,
                    grad_weight ? grad_weight + row : nullptr, grad_times ? grad_times + e : nullptr, rates, sums);
  }
}

template <class T>
int backward(const Input<T>& in, const Spikes<T>& out, const Gradients<T>& g) {
  if (in.batch * in.events * in.neurons == 0) return 0;
  fill_intervals(in, g.by_v, g.by_i);
  const int64_t blocks = in.blocks();
  std::atomic<int> failed{0};
#pragma omp parallel for schedule(dynamic) num_threads(in.threads) if (in.parallel())
  for (int64_t task = 0; task < g.parts * blocks; ++task) {
    const int64_t part = task / blocks, first = task % blocks * kBlock, width = std::min(kBlock, in.pitch - first);
    auto* head = static_cast<int32_t*>(Scratch<kOffsets>::get(in.events * sizeof(int32_t)));
    auto* pulls = static_cast<Pull<T>*>(Scratch<kPartials>::get(width * in.spikes * sizeof(Pull<T>)));
    if (!head || !pulls) {
      failed = 1;
      continue;
    }
    T* weight = g.weight ? g.weight + part * in.inputs * in.pitch : nullptr;
    double* rates = g.rates ? g.rates + 2 * task : nullptr;
    const auto run = rates ? sweep_back<T, true> : sweep_back<T, false>;
    for (int64_t b = part * in.batch / g.parts; b < (part + 1) * in.batch / g.parts; ++b) {
      run(in, out, g, b, first, width, head, pulls, weight, rates);
    }
  }
  return failed;
}

}  // namespace
}  // namespace nobp

#define NOBP_SPIKING_BACKWARD(T, suffix)                                                                             \
  extern "C" int nobp_spiking_backward_##suffix(                                                                     \
      const T* times, const int64_t* index, const int64_t* counts, const T* weight, const int64_t* sizes,            \
      const double* numbers, int64_t threads, T* intervals, T* spikes, int64_t* spike_counts, int32_t* event,        \
      T* slope, const T* grad, int64_t parts, T* grad_times, T* grad_weight, double* grad_rates, T* by_v, T* by_i) { \
    return nobp::backward<T>(nobp::input(times, index, counts, weight, sizes, numbers, threads, intervals),          \
                             {spikes, spike_counts, event, slope},                                                   \
                             {grad, grad_times, grad_weight, grad_rates, by_v, by_i, parts, numbers[4]});            \
  }

NOBP_SPIKING_BACKWARD(float, float32)
NOBP_SPIKING_BACKWARD(double, float64)

// How many neurons a block has, on which the shape of the gradient of times depends.
extern "C" int64_t nobp_spiking_block() { return nobp::kBlock; }
