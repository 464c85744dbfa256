// Vectors of as many bytes as the target has registers for, by GCC's and Clang's vector extension: one source for
// SSE2, AVX2, AVX-512 and NEON. Which one it becomes is decided by the compiler's flags.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace nobp {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Bits = typename Simd<T>::Bits;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// Any alignment: memcpy of a vector is one unaligned move.
template <class T>
inline Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vector<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// Whether any bit of N bytes is set, by halves: no lane is looked at on its own.
template <int N>
inline bool any_bit(const void* bytes) {
  if constexpr (N == 8) {
    int64_t word;
    std::memcpy(&word, bytes, N);
    return word != 0;
  } else {
    typedef int64_t Half __attribute__((vector_size(N / 2)));
    Half halves[2];
    std::memcpy(halves, bytes, N);
    halves[0] |= halves[1];
    return any_bit<N / 2>(halves);
  }
}

// Whether any lane of a comparison's result is true.
template <class T>
inline bool any(Bits<T> lanes) {
  return any_bit<kVectorBytes>(&lanes);
}

// The exchange of a butterfly at distance D: lane l of `low` is a[l] where bit D of l is clear, else b[l - D]; lane l
// of `high` is a[l + D], else b[l].
template <class T, int D, size_t... L>
inline Vector<T> low(Vector<T> a, Vector<T> b, std::index_sequence<L...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((L & D) ? kLanes<T> + int(L) - D : int(L))...);
#else
  return __builtin_shuffle(a, b, Bits<T>{((L & D) ? kLanes<T> + int(L) - D : int(L))...});
#endif
}

template <class T, int D, size_t... L>
inline Vector<T> high(Vector<T> a, Vector<T> b, std::index_sequence<L...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((L & D) ? kLanes<T> + int(L) : int(L) + D)...);
#else
  return __builtin_shuffle(a, b, Bits<T>{((L & D) ? kLanes<T> + int(L) : int(L) + D)...});
#endif
}

template <class T, int D>
inline Vector<T> low(Vector<T> a, Vector<T> b) {
  return low<T, D>(a, b, std::make_index_sequence<kLanes<T>>());
}

template <class T, int D>
inline Vector<T> high(Vector<T> a, Vector<T> b) {
  return high<T, D>(a, b, std::make_index_sequence<kLanes<T>>());
}

// Transpose a square of kLanes rows.
template <class T, int D = 1>
inline void transpose(Vector<T>* rows) {
  if constexpr (D < kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & D) continue;
      const Vector<T> a = rows[i], b = rows[i + D];
      rows[i] = low<T, D>(a, b);
      rows[i + D] = high<T, D>(a, b);
    }
    transpose<T, 2 * D>(rows);
  }
}

// Sum the lanes of N vectors item(First), ..., into lanes First, ... of one: no sum across a register on its own.
template <class T, int First, int N, class Item>
inline Vector<T> sum_lanes(const Item& item) {
  if constexpr (N == 1) {
    return item(First);
  } else {
    const Vector<T> a = sum_lanes<T, First, N / 2>(item), b = sum_lanes<T, First + N / 2, N / 2>(item);
    return low<T, N / 2>(a, b) + high<T, N / 2>(a, b);
  }
}

}  // namespace nobp
