// Maps y = W x + b whose weights are fp32, bf16, or whole numbers of 8 or 4 bits in groups.
//
// A panel holds 32 rows of W, which stand in the lanes of two vectors, and runs through memory once:
//
//   FP32   for every input          32 floats
//   BF16   for every two inputs     32 pairs
//   INT8   for every 32 inputs      8 times 32 × 4 bytes (code + 128), then 32 scales in fp16
//   INT4   for every 32 inputs      4 times 32 × 4 bytes (code + 8: of inputs 0-3 in the low halves,
//                                   of inputs 4-7 in the high ones), then 32 scales in fp16
//
// Inputs of maps of whole numbers are rounded to 8 bits themselves, in the same groups of 32:
// Σ (w + 128) x - 128 Σ x = Σ w x, times both scales. A result is summed in the order of the inputs,
// whatever else is computed beside it: it does not depend on the other rows.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "simd.h"

#if PAIRS && defined(__AVX512VNNI__)
#define PANELS 1

namespace {

enum Format : int64_t { FP32, BF16, INT8, INT4 };
constexpr int WIDE = 2 * L, GROUP = 32;
constexpr int PATIENCE = 1 << 14;  // turns of waiting, a fraction of a millisecond

struct Map {
  const uint8_t* panels;
  const float* bias;  // [d_out] and zeros up to a whole panel
  int64_t d_in, d_out, format;  // d_in: a multiple of GROUP
};

INLINE int64_t panels_of(const Map& map) { return (map.d_out + WIDE - 1) / WIDE; }
INLINE int64_t group_bytes(int64_t format) {
  return format == FP32 ? GROUP * WIDE * 4 : format == BF16 ? GROUP * WIDE * 2
       : format == INT8 ? GROUP * WIDE + 2 * WIDE : GROUP * WIDE / 2 + 2 * WIDE;
}

// Inputs as a format reads them: n rows of d_in.
struct Rows {
  uint8_t* data;
  float* scale;    // [n, d_in / GROUP], of whole numbers
  int32_t* shift;  // the same, what is to be taken off the sum
  int64_t d_in, format;

  static int64_t number_bytes(int64_t format) { return format == FP32 ? 4 : format == BF16 ? 2 : 1; }
  static int64_t bytes(int64_t n, int64_t d_in, int64_t format) {
    return n * d_in * number_bytes(format) + (format >= INT8 ? n * (d_in / GROUP) * 8 : 0) + 3 * 64;
  }
  template <class T>
  T* row(int64_t i) const { return reinterpret_cast<T*>(data) + i * d_in; }

  // Sixteen numbers of a row, k to k + 15, as they were rounded.
  INLINE V at(int64_t i, int64_t k) const {
    if (format == FP32) return load(row<float>(i) + k);
    if (format == BF16) return load(row<bf16>(i) + k);
    const __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(row<int8_t>(i) + k)));
    return (V)_mm512_cvtepi32_ps(x) * scale[i * (d_in / GROUP) + k / GROUP];
  }

  // Two vectors, numbers k to k + 31 of a row.
  INLINE void put(int64_t i, int64_t k, V a, V b) const {
    if (format == FP32) {
      store(row<float>(i) + k, a), store(row<float>(i) + k + L, b);
    } else if (format == BF16) {
      store(row<bf16>(i) + k, a), store(row<bf16>(i) + k + L, b);
    } else {
      const __m512 most = _mm512_max_ps(_mm512_abs_ps((__m512)a), _mm512_abs_ps((__m512)b));
      const float top = _mm512_reduce_max_ps(most), by = top > 0 ? 127 / top : 0;
      const __m512i x = _mm512_cvtps_epi32((__m512)(a * by)), y = _mm512_cvtps_epi32((__m512)(b * by));
      int8_t* to = row<int8_t>(i) + k;
      _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8(x));
      _mm_storeu_si128((__m128i*)(to + L), _mm512_cvtsepi32_epi8(y));
      const int64_t group = i * (d_in / GROUP) + k / GROUP;
      scale[group] = top / 127;
      shift[group] = (format == INT8 ? -128 : -8) * _mm512_reduce_add_epi32(_mm512_add_epi32(x, y));
    }
  }
};

INLINE __m512i four(const int8_t* p) {  // to every place
  int32_t bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

// Memory in pieces.
struct Room {
  uint8_t* at;
  template <class T>
  T* take(int64_t n) {
    at = (uint8_t*)(((uintptr_t)at + 63) / 64 * 64);
    T* piece = (T*)at;
    at += n * sizeof(T);
    return piece;
  }
  Rows rows(int64_t n, int64_t d_in, int64_t format) {
    uint8_t* data = take<uint8_t>(n * d_in * Rows::number_bytes(format));
    const int64_t groups = format >= INT8 ? n * (d_in / GROUP) : 0;
    float* scale = take<float>(groups);
    return {data, scale, take<int32_t>(groups), d_in, format};
  }
};

// Meets all threads; they spin, since a phase takes microseconds, and make room for others where one
// of them has lost its core.
class Meeting {
 public:
  void expect(int n) { n_ = n, left_.store(n); }
  void operator()() {
    const int round = round_.load(std::memory_order_relaxed);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      left_.store(n_, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      for (int turns = 0; round_.load(std::memory_order_acquire) == round; turns++)
        turns < PATIENCE ? _mm_pause() : std::this_thread::yield();
    }
  }

 private:
  int n_ = 1;
  std::atomic<int> left_{1}, round_{0};
};

// work(me, of, meet) on up to so many threads.
template <class Work>
void together(int threads, const Work& work) {
  Meeting meet;
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), of = omp_get_num_threads();
#pragma omp single
    meet.expect(of);
    work(me, of, meet);
  }
}

// One of `of` threads that share `n` tasks: task(i) for its own, one after the other.
template <class Task>
void run(int64_t n, int me, int of, const Task& task) {
  for (int64_t i = n * me / of; i < n * (me + 1) / of; i++) task(i);
}

// R rows of x with one panel.
template <int F, int R>
INLINE void multiply(const Rows& x, int64_t first, const uint8_t* panel, V (&sums)[R][2]) {
  if constexpr (F == FP32) {
    const float* row = x.row<float>(first);
    for (int64_t k = 0; k < x.d_in; k++, panel += 4 * WIDE) {
      const V w0 = load((const float*)panel), w1 = load((const float*)panel + L);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const V a = fill(row[r * x.d_in + k]);
        sums[r][0] = (V)_mm512_fmadd_ps((__m512)a, (__m512)w0, (__m512)sums[r][0]);
        sums[r][1] = (V)_mm512_fmadd_ps((__m512)a, (__m512)w1, (__m512)sums[r][1]);
      }
    }
  } else if constexpr (F == BF16) {
    const bf16* row = x.row<bf16>(first);
    for (int64_t k = 0; k < x.d_in; k += 2, panel += 4 * WIDE) {
      const __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel), w1 = (__m512bh)_mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const __m512bh a = pair(row + r * x.d_in + k);
        sums[r][0] = (V)_mm512_dpbf16_ps((__m512)sums[r][0], a, w0);
        sums[r][1] = (V)_mm512_dpbf16_ps((__m512)sums[r][1], a, w1);
      }
    }
  } else {
    const int64_t groups = x.d_in / GROUP;
    const int8_t* row = x.row<int8_t>(first);
    const float* scale = x.scale + first * groups;
    const int32_t* shift = x.shift + first * groups;
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t g = 0; g < groups; g++, row += GROUP) {
      __m512i whole[R][2];
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) whole[r][0] = whole[r][1] = _mm512_set1_epi32(shift[r * groups + g]);
      if constexpr (F == INT8) {
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++, panel += 128) {
          const __m512i w0 = _mm512_loadu_si512(panel), w1 = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            const __m512i a = four(row + r * x.d_in + 4 * q);
            whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], w0, a);
            whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], w1, a);
          }
        }
      } else {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++, panel += 128) {
          const __m512i both0 = _mm512_loadu_si512(panel), both1 = _mm512_loadu_si512(panel + 64);
          const __m512i w0 = _mm512_and_si512(both0, low), w1 = _mm512_and_si512(both1, low);
          const __m512i w2 = _mm512_and_si512(_mm512_srli_epi16(both0, 4), low);
          const __m512i w3 = _mm512_and_si512(_mm512_srli_epi16(both1, 4), low);
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            const __m512i a = four(row + r * x.d_in + 8 * q), b = four(row + r * x.d_in + 8 * q + 4);
            whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], w0, a);
            whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], w1, a);
            whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], w2, b);
            whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], w3, b);
          }
        }
      }
      const __m512 s0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)panel));
      const __m512 s1 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)panel + 1));
      panel += 2 * WIDE;
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const __m512 s = _mm512_set1_ps(scale[r * groups + g]);
        sums[r][0] = (V)_mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][0]), s), s0, (__m512)sums[r][0]);
        sums[r][1] = (V)_mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][1]), s), s1, (__m512)sums[r][1]);
      }
    }
  }
}

template <int F, int R, class Then>
void block(const Map& map, int64_t p, const Rows& x, int64_t first, const Then& then) {
  V sums[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) sums[r][0] = load(map.bias + p * WIDE), sums[r][1] = load(map.bias + p * WIDE + L);
  multiply<F, R>(x, first, map.panels + p * (map.d_in / GROUP) * group_bytes(F), sums);
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) then(first + r, p * WIDE, sums[r][0], sums[r][1]);
}

template <int F, class Then>
void rows_by(const Map& map, int64_t p, const Rows& x, int64_t first, int64_t n, const Then& then) {
  constexpr int MOST = F >= INT8 ? 6 : 12;
  for (int64_t end = first + n; first < end;) {
    const int64_t left = end - first, some = left >= 2 * MOST || left <= MOST ? std::min<int64_t>(left, MOST) : (left + 1) / 2;
    switch (some) {
      case 12: if constexpr (MOST == 12) block<F, 12>(map, p, x, first, then); break;
      case 11: if constexpr (MOST == 12) block<F, 11>(map, p, x, first, then); break;
      case 10: if constexpr (MOST == 12) block<F, 10>(map, p, x, first, then); break;
      case 9: if constexpr (MOST == 12) block<F, 9>(map, p, x, first, then); break;
      case 8: if constexpr (MOST == 12) block<F, 8>(map, p, x, first, then); break;
      case 7: if constexpr (MOST == 12) block<F, 7>(map, p, x, first, then); break;
      case 6: block<F, 6>(map, p, x, first, then); break;
      case 5: block<F, 5>(map, p, x, first, then); break;
      case 4: block<F, 4>(map, p, x, first, then); break;
      case 3: block<F, 3>(map, p, x, first, then); break;
      case 2: block<F, 2>(map, p, x, first, then); break;
      default: block<F, 1>(map, p, x, first, then);
    }
    first += some;
  }
}

// Rows first to first + n of x through panel p: then(row, column, 16 results, 16 more).
template <class Then>
void apply(const Map& map, int64_t p, const Rows& x, int64_t first, int64_t n, const Then& then) {
  switch (map.format) {
    case FP32: return rows_by<FP32>(map, p, x, first, n, then);
    case BF16: return rows_by<BF16>(map, p, x, first, n, then);
    case INT8: return rows_by<INT8>(map, p, x, first, n, then);
    default: return rows_by<INT4>(map, p, x, first, n, then);
  }
}

}  // namespace
#else
#define PANELS 0
#endif
