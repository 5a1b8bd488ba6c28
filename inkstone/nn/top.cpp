// The most probable words of every row of scores, and how probable they are.

#include <omp.h>

#include <cmath>
#include <limits>

#include "simd.h"

namespace {

INLINE bool any_above(V x, float least) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(least), _CMP_GT_OQ);
#else
  bool found = false;
  for (int j = 0; j < L; j++) found |= x[j] > least;
  return found;
#endif
}

// The k largest of n numbers, largest first, the earlier one first where two are equal.
void largest(const float* x, int64_t n, int64_t k, float* values, int64_t* ids) {
  for (int64_t i = 0; i < k; i++) values[i] = -std::numeric_limits<float>::infinity(), ids[i] = 0;
  const auto take = [&](int64_t place) {
    if (!(x[place] > values[k - 1])) return;
    int64_t i = k - 1;
    for (; i > 0 && x[place] > values[i - 1]; i--) values[i] = values[i - 1], ids[i] = ids[i - 1];
    values[i] = x[place], ids[i] = place;
  };
  int64_t t = 0;
  for (; t + L <= n; t += L)
    if (any_above(load(x + t), values[k - 1]))
      for (int64_t i = t; i < t + L; i++) take(i);
  for (; t < n; t++) take(t);
}

// ln Σ e^(x - top)
float log_sum(const float* x, int64_t n, float top) {
  V total = {};
  int64_t t = 0;
  for (; t + L <= n; t += L) total += exp_of(load(x + t) - top);
  float sum = 0;
  for (int j = 0; j < L; j++) sum += total[j];
  for (; t < n; t++) sum += std::exp(x[t] - top);
  return std::log(sum);
}

}  // namespace

// x [rows, ·], rows `stride` apart, n numbers each → logs of probabilities and ids [rows, k].
extern "C" void top(const float* x, int64_t rows, int64_t stride, int64_t n, int64_t k, int64_t threads, float* values,
                    int64_t* ids) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    float* found = values + r * k;
    largest(x + r * stride, n, k, found, ids + r * k);
    const float off = found[0] + log_sum(x + r * stride, n, found[0]);
    for (int64_t i = 0; i < k; i++) found[i] -= off;
  }
}
