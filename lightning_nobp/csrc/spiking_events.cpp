// The spikes of each sample in the order of their times: where they stand among all places that could hold one, most of
// which are empty.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "scratch.h"
#include "threads.h"

namespace nobp {
namespace {

constexpr int kDigitBits = 11;

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
struct Item {
  Key<T> key;
  int32_t place;
};

// A whole number in the order of the times.
template <class T>
inline Key<T> key_of(T time) {
  constexpr Key<T> sign = Key<T>(1) << (8 * sizeof(T) - 1);
  // Zero has one sign only.
  time += T(0);
  Key<T> bits;
  std::memcpy(&bits, &time, sizeof bits);
  return bits & sign ? ~bits : bits | sign;
}

// Sort by digits from the last to the first, each time keeping the order of what is equal. Returns where the result is.
template <class T>
Item<T>* sort(Item<T>* items, Item<T>* spare, int64_t count) {
  constexpr Key<T> mask = (1 << kDigitBits) - 1;
  for (int shift = 0; shift < int(8 * sizeof(T)); shift += kDigitBits) {
    int32_t start[mask + 2] = {};
    for (int64_t j = 0; j < count; ++j) ++start[(items[j].key >> shift & mask) + 1];
    for (Key<T> digit = 0; digit < mask; ++digit) start[digit + 1] += start[digit];
    for (int64_t j = 0; j < count; ++j) spare[start[items[j].key >> shift & mask]++] = items[j];
    std::swap(items, spare);
  }
  return items;
}

template <class T>
void count(const T* times, int64_t rows, int64_t width, int64_t* counts, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * width >= kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    int64_t found = 0;
    for (int64_t j = 0; j < width; ++j) found += times[row * width + j] < std::numeric_limits<T>::infinity();
    counts[row] = found;
  }
}

// `order` has `longest` places for each row, and is 0 after the row's spikes.
template <class T>
int sort_rows(const T* times, int64_t rows, int64_t width, int64_t longest, int64_t* order, int threads) {
  std::atomic<int> failed{0};
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && rows * width >= kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    auto* items = static_cast<Item<T>*>(Scratch<kInput>::get(2 * longest * sizeof(Item<T>)));
    if (!items && longest) {
      failed = 1;
      continue;
    }
    int64_t found = 0;
    for (int64_t j = 0; j < width; ++j) {
      const T time = times[row * width + j];
      if (time < std::numeric_limits<T>::infinity()) items[found++] = {key_of(time), int32_t(j)};
    }
    const Item<T>* sorted = sort(items, items + longest, found);
    int64_t* out = order + row * longest;
    for (int64_t j = 0; j < longest; ++j) out[j] = j < found ? sorted[j].place : 0;
  }
  return failed;
}

}  // namespace
}  // namespace nobp

#define NOBP_SPIKING_EVENTS(T, suffix)                                                                             \
  extern "C" int nobp_spiking_count_##suffix(const T* times, int64_t rows, int64_t width, int64_t threads,         \
                                             int64_t* counts) {                                                    \
    nobp::count<T>(times, rows, width, counts, int(threads));                                                      \
    return 0;                                                                                                      \
  }                                                                                                                \
  extern "C" int nobp_spiking_order_##suffix(const T* times, int64_t rows, int64_t width, int64_t threads,         \
                                             int64_t longest, int64_t* order) {                                    \
    return nobp::sort_rows<T>(times, rows, width, longest, order, int(threads));                                   \
  }

NOBP_SPIKING_EVENTS(float, float32)
NOBP_SPIKING_EVENTS(double, float64)
