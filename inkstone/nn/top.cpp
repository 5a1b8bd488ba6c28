// The most probable words of every row of scores, and how probable they are; of scores that are there,
// or of those that a map gives, a few rows at a time that never leave a thread's cache.

#include <cmath>
#include <limits>
#include <vector>

#include "panels.h"

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

void best(const float* x, int64_t n, int64_t k, float* values, int64_t* ids) {
  largest(x, n, k, values, ids);
  const float off = values[0] + log_sum(x, n, values[0]);
  for (int64_t i = 0; i < k; i++) values[i] -= off;
}

}  // namespace

// x [rows, ·], rows `stride` apart, n numbers each → logs of probabilities and ids [rows, k].
extern "C" void top(const float* x, int64_t rows, int64_t stride, int64_t n, int64_t k, int64_t threads, float* values,
                    int64_t* ids) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) best(x + r * stride, n, k, values + r * k, ids + r * k);
}

#if PANELS
constexpr int64_t SOME = 24;  // rows

extern "C" int64_t top_room(const Map* map, int64_t rows) {
  Room room = {nullptr};
  room.rows(rows, map->d_in, map->format);
  return (int64_t)room.at + 64;
}

// The same of a map's scores of x [rows, d_in].
extern "C" void top_of_map(const Map* map, const float* x, int64_t rows, int64_t k, int64_t threads, uint8_t* memory,
                           float* values, int64_t* ids) {
  Room room = {memory};
  const Rows given = room.rows(rows, map->d_in, map->format);
  const int64_t width = panels_of(*map) * WIDE;
  together(threads, [&](int me, int of, Meeting&) {
    std::vector<float> scores(SOME * width);
    run((rows + SOME - 1) / SOME, me, of, [&](int64_t part) {
      const int64_t first = part * SOME, some = std::min(SOME, rows - first);
      for (int64_t i = first; i < first + some; i++)
        for (int64_t c = 0; c < map->d_in; c += 2 * L)
          given.put(i, c, load(x + i * map->d_in + c), load(x + i * map->d_in + c + L));
      for (int64_t p = 0; p < panels_of(*map); p++)
        apply(*map, p, given, first, some, [&](int64_t i, int64_t c, V a, V b) {
          float* to = scores.data() + (i - first) * width + c;
          store(to, a), store(to + L, b);
        });
      for (int64_t i = 0; i < some; i++)
        best(scores.data() + i * width, map->d_out, k, values + (first + i) * k, ids + (first + i) * k);
    });
  });
}
#endif
