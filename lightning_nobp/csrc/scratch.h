// Memory that a thread keeps between calls, so that no call pays for fresh pages.
#pragma once

#include <cstdlib>

namespace nobp {

enum Purpose { kInput, kGradient, kOffsets, kColumnOffsets, kColumnValues, kPartials };

// Buffers of one thread, by purpose. They grow, and are freed when the thread ends.
template <Purpose>
class Scratch {
 public:
  // At least `bytes`, aligned to a cache line; null where there is no memory.
  static void* get(size_t bytes) {
    static thread_local Scratch mine;
    if (bytes > mine.size_) {
      std::free(mine.data_);
      // Half as much again: shapes that grow little by little do not allocate each time.
      mine.size_ = (bytes + bytes / 2 + 63) / 64 * 64;
      mine.data_ = std::aligned_alloc(64, mine.size_);
      if (!mine.data_) mine.size_ = 0;
    }
    return mine.data_;
  }

  ~Scratch() { std::free(data_); }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nobp
