// When more threads are worth it.
#pragma once

#include <cstdint>

namespace nobp {

// Less work than this is done before a second thread has woken up.
constexpr int64_t kWorthThreads = 1 << 16;

}  // namespace nobp
