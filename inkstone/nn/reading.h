// What the passes through a Transformer share: norms of a row, and attention over keys and values in
// pages. A sum is made in one order whatever else is computed beside it.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "panels.h"

#if PANELS
namespace {

constexpr int PAGE = L;     // tokens of a page
constexpr int QUERIES = 4;  // of one text that look at its keys together

struct Norm {
  const float *weight, *bias;  // bias: layer norm only
};

INLINE V cached(const float* p) { return load(p); }
INLINE V cached(const uint16_t* p) { return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void keep(float* p, float x) { *p = x; }
INLINE void keep(uint16_t* p, float x) {
  *p = (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0);
}
INLINE float sum(V x) { return _mm512_reduce_add_ps((__m512)x); }

// A row of d numbers, normed.
struct Normed {
  const float* x;
  const Norm& norm;
  float mean, by;

  Normed(const float* x, int64_t d, const Norm& norm, bool rms, float eps) : x(x), norm(norm), mean(0) {
    V a = {}, b = {};
    if (!rms) {
      for (int64_t k = 0; k < d; k += L) a += load(x + k);
      mean = sum(a) / d;
    }
    for (int64_t k = 0; k < d; k += L) {
      const V z = load(x + k) - mean;
      b += z * z;
    }
    by = 1 / std::sqrt(sum(b) / d + eps);
  }
  INLINE V operator()(int64_t k) const {
    const V y = (load(x + k) - mean) * by * load(norm.weight + k);
    return norm.bias ? y + load(norm.bias + k) : y;
  }
};

// Keys and values of one layer, in fp32 or fp16 (C).
template <class C>
struct Pages {
  C *keys, *values;  // [pages, heads, head_dim, PAGE], [pages, heads, PAGE, value_dim]
  int64_t heads, head_dim, value_dim;  // value_dim: head_dim in whole vectors, the rest is zero

  C* key(int64_t page, int64_t h) const { return keys + (page * heads + h) * head_dim * PAGE; }
  C* value(int64_t page, int64_t h) const { return values + (page * heads + h) * PAGE * value_dim; }
  INLINE void file_key(int64_t page, int64_t slot, int64_t h, const float* x) const {
    C* to = key(page, h) + slot;
    for (int64_t k = 0; k < head_dim; k++) keep(to + k * PAGE, x[k]);
  }
  INLINE void file_value(int64_t page, int64_t slot, int64_t h, const float* x) const {
    C* to = value(page, h) + slot * value_dim;
    for (int64_t k = 0; k < head_dim; k++) keep(to + k, x[k]);
  }
};

// R queries of one text, of the heads that share keys with heads `from` to `to` of the pages. Pages are
// gone through in the order of memory. scores: room for every one of these heads and queries.
template <class C, int R>
struct Attention {
  Pages<C> pages;
  int64_t shared;  // heads of queries that share one of keys
  int64_t window;  // tokens that a token sees, itself included; 0: all
  bool ahead;      // whether every query sees one token more than the one before; else all see as many
  const float* q;  // [R, ·], scaled, rows `stride` apart
  int64_t stride;
  const int64_t* table;
  int64_t position;  // of the last token that the first query sees
  int64_t from, to;
  float* scores;
  int64_t room;
  float* out;  // [R, pages.heads * shared * value_dim]

  void operator()() const {
    const int64_t e = pages.head_dim, wide = pages.value_dim, width = pages.heads * shared * wide;
    const int64_t lowest = window ? std::max<int64_t>(0, position - window + 1) : 0, first = lowest / PAGE;
    const int64_t end = position + (ahead ? R : 1), last = (end + PAGE - 1) / PAGE;
    for (int64_t p = first; p < last; p++)
      for (int64_t g = from; g < to; g++)
        for (int64_t h = 0; h < shared; h++)
          score(pages.key(table[p], g), q + (g * shared + h) * e, p,
                scores + ((g - from) * shared + h) * R * room + (p - first) * PAGE);
    for (int64_t row = 0; row < (to - from) * shared * R; row++) softmax(scores + row * room, (last - first) * PAGE);
    for (int r = 0; r < R; r++)
      std::memset(out + r * width + from * shared * wide, 0, (to - from) * shared * wide * sizeof(float));
    for (int64_t p = first; p < last; p++)
      for (int64_t g = from; g < to; g++) {
        const C* values = pages.value(table[p], g);
        for (int64_t h = 0; h < shared; h++) {
          const float* weights = scores + ((g - from) * shared + h) * R * room + (p - first) * PAGE;
          float* to = out + (g * shared + h) * wide;
          const int64_t here = std::min<int64_t>(PAGE, end - p * PAGE);
          int64_t i = 0;
          for (; i + 4 * L <= wide; i += 4 * L) mix<4>(values + i, weights, here, to + i, width);
          for (; i < wide; i += L) mix<1>(values + i, weights, here, to + i, width);
        }
      }
  }

  // Four sums of every query, each of every fourth number, so that none waits for the one before.
  INLINE void score(const C* keys, const float* query, int64_t p, float* to) const {
    V parts[R][4] = {};
    for (int64_t i = 0; i < pages.head_dim; i += 4)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const V column = cached(keys + (i + j) * PAGE);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) parts[r][j] += query[r * stride + i + j] * column;
      }
    const V lane = (V)_mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int r = 0; r < R; r++) {
      const float here = float(position + (ahead ? r : 0) - p * PAGE);  // lanes up to here are seen
      __mmask16 seen = _mm512_cmp_ps_mask((__m512)lane, _mm512_set1_ps(here), _CMP_LE_OQ);
      if (window) seen &= _mm512_cmp_ps_mask((__m512)lane, _mm512_set1_ps(here - window), _CMP_GT_OQ);
      const V found = (parts[r][0] + parts[r][1]) + (parts[r][2] + parts[r][3]);
      store(to + r * room, (V)_mm512_mask_blend_ps(seen, never, (__m512)found));
    }
  }

  static INLINE void softmax(float* row, int64_t n) {
    V top = load(row), total = {};
    for (int64_t t = L; t < n; t += L) top = (V)_mm512_max_ps((__m512)top, (__m512)load(row + t));
    const float highest = _mm512_reduce_max_ps((__m512)top);
    for (int64_t t = 0; t < n; t += L) {
      const V weight = exp_of(load(row + t) - highest);
      store(row + t, weight);
      total += weight;
    }
    const float by = 1 / sum(total);
    for (int64_t t = 0; t < n; t += L) store(row + t, load(row + t) * by);
  }

  // N vectors of the first `n` values of a page, added by weight.
  template <int N>
  INLINE void mix(const C* values, const float* weights, int64_t n, float* to, int64_t width) const {
    V mixed[R][N];
    for (int r = 0; r < R; r++)
      for (int j = 0; j < N; j++) mixed[r][j] = load(to + r * width + j * L);
    for (int64_t t = 0; t < n; t++, values += pages.value_dim)
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) {
        const V value = cached(values + j * L);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) mixed[r][j] += weights[r * room + t] * value;
      }
    for (int r = 0; r < R; r++)
      for (int j = 0; j < N; j++) store(to + r * width + j * L, mixed[r][j]);
  }
};

// work(Attention of R) for `n` queries, at most QUERIES.
template <class Work>
INLINE void by_queries(int64_t n, const Work& work) {
  switch (n) {
    case 4: return work(std::integral_constant<int, 4>());
    case 3: return work(std::integral_constant<int, 3>());
    case 2: return work(std::integral_constant<int, 2>());
    default: return work(std::integral_constant<int, 1>());
  }
}

}  // namespace
#endif
