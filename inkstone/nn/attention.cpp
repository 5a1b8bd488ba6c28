// Attention of each row's tokens among themselves, forwards, in bf16: for networks that read.
//
// A thread takes one head of one row at a time. Keys and values are laid out once, for the tile
// registers or for vectors of pairs; then for each 32 queries the scores, their exponentials and the
// sum over the values follow each other in its cache. Sums are fp32, and no score is written to
// memory that others read.

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

#if PAIRS
namespace {

constexpr int64_t B = 32, TILE = 512;  // queries or keys in a block; numbers in a tile

// Sixteen rows of sixteen 32-bit numbers become columns.
INLINE void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; j++) {
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

// A block of a product: rows 0 to 31 of a [32, n] with the columns of b, whose two columns of tiles
// stand `across` numbers apart.
#if TILES
INLINE void multiply(const bf16* a, int64_t stride, const bf16* b, int64_t across, int64_t n, float* out,
                     int64_t out_stride) {
  asm volatile("" ::: "memory");  // what the tiles read has been written
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < n; i += B, b += TILE) {
    _tile_loadd(4, a + i, stride * 2);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + across, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + L * stride + i, stride * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, out_stride * 4);
  _tile_stored(1, out + L, out_stride * 4);
  _tile_stored(2, out + L * out_stride, out_stride * 4);
  _tile_stored(3, out + L * out_stride + L, out_stride * 4);
}
#else
INLINE void multiply(const bf16* a, int64_t stride, const bf16* b, int64_t across, int64_t n, float* out,
                     int64_t out_stride) {
  constexpr int ROWS = 8;
  for (int64_t row = 0; row < B; row += ROWS, a += ROWS * stride, out += ROWS * out_stride) {
    __m512 sums[ROWS][2] = {};
    for (int64_t i = 0; i < n; i += 2) {
      const __m512bh left = (__m512bh)_mm512_load_si512(b + i * L);
      const __m512bh right = (__m512bh)_mm512_load_si512(b + i * L + across);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const __m512bh x = pair(a + r * stride + i);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, left);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, right);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      _mm512_storeu_ps(out + r * out_stride, sums[r][0]);
      _mm512_storeu_ps(out + r * out_stride + L, sums[r][1]);
    }
  }
}
#endif

struct Room {
  int64_t n, width;                  // tokens up to a multiple of B; numbers of a head
  bf16 *keys, *values, *queries, *weights;
  float *scores, *sums;
  bf16* memory;

  static int64_t up(int64_t n) { return (n + B - 1) / B * B; }
  Room(int64_t longest, int64_t width) : n(up(longest)), width(width) {
    const int64_t size = 2 * n * width + B * width + B * n + 2 * (B * n + B * B);
    memory = static_cast<bf16*>(std::aligned_alloc(64, size * sizeof(bf16)));
    keys = memory, values = keys + n * width, queries = values + n * width;
    weights = queries + B * width;
    scores = reinterpret_cast<float*>(weights + B * n), sums = scores + B * n;
  }
  ~Room() { std::free(memory); }
  Room(const Room&) = delete;
};

// keys: tiles [n / 16][width / 32] of 16 keys; values: tiles [width / 16][n / 32] of 32 tokens, two
// of them in turn.
INLINE void lay_out(const Room& room, const bf16* k, int64_t k_stride, const bf16* v, int64_t v_stride,
                    int64_t tokens) {
  const int64_t n = Room::up(tokens), width = room.width;
  for (int64_t t = 0; t < n; t += L)
    for (int64_t e = 0; e < width; e += B) {
      __m512i rows[16];
      for (int64_t i = 0; i < L; i++)
        rows[i] = t + i < tokens ? _mm512_loadu_si512(k + (t + i) * k_stride + e) : _mm512_setzero_si512();
      transpose(rows);
      for (int64_t i = 0; i < L; i++) _mm512_store_si512(room.keys + t * width + e * L + i * B, rows[i]);
    }
  for (int64_t t = 0; t < n; t += 2)
    for (int64_t e = 0; e < width; e += L) {
      auto row = [&](int64_t t) {
        const __m256i none = _mm256_setzero_si256();
        return _mm512_cvtepu16_epi32(t < tokens ? _mm256_loadu_si256((const __m256i*)(v + t * v_stride + e)) : none);
      };
      const __m512i pair = _mm512_or_si512(row(t), _mm512_slli_epi32(row(t + 1), 16));
      _mm512_store_si512(room.values + e * n + t / B * TILE + t % B * L, pair);
    }
}

// Scores of a query become its weights, not yet divided by their sum; returns what to multiply by.
INLINE float weigh(float* scores, bf16* weights, int64_t tokens, int64_t n, float scale) {
  for (int64_t c = tokens; c < n; c++) scores[c] = -INFINITY;
  V top = load(scores);
  for (int64_t c = L; c < n; c += L) {
    const V x = load(scores + c);
    top = x > top ? x : top;
  }
  const float most = _mm512_reduce_max_ps((__m512)top) * scale;
  V sum = {};
  for (int64_t c = 0; c < n; c += L) {
    const V y = exp_of(load(scores + c) * scale - most);
    sum += y;
    store(weights + c, y);
  }
  return 1.0f / _mm512_reduce_add_ps((__m512)sum);
}

}  // namespace

extern "C" int attention_is_here() { return !TILES || tiles_granted(); }

// Tokens of row r stand at starts[r] to starts[r + 1], `stride` numbers apart; head h begins h · width
// numbers behind. width is a multiple of 32; out is [tokens, heads · width].
extern "C" void attend(const bf16* q, int64_t q_stride, const bf16* k, int64_t k_stride, const bf16* v,
                       int64_t v_stride, const int64_t* starts, int64_t rows, int64_t heads,
                       int64_t width, float scale, bf16* out) {
  int64_t longest = 0;
  for (int64_t r = 0; r < rows; r++) longest = std::max(longest, starts[r + 1] - starts[r]);
#pragma omp parallel
  {
    Room room(longest, width);
    tiles_on();
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < rows * heads; task++) {
      const int64_t row = task / heads, at = task % heads * width;
      const int64_t first = starts[row], tokens = starts[row + 1] - first, n = Room::up(tokens);
      if (tokens <= 0) continue;
      lay_out(room, k + first * k_stride + at, k_stride, v + first * v_stride + at, v_stride, tokens);
      for (int64_t begin = 0; begin < tokens; begin += B) {
        const int64_t m = std::min(B, tokens - begin);
        const bf16* queries = q + (first + begin) * q_stride + at;
        int64_t stride = q_stride;
        if (m < B) {  // a tile reads whole rows
          std::memset(room.queries, 0, B * width * sizeof(bf16));
          for (int64_t i = 0; i < m; i++)
            std::memcpy(room.queries + i * width, queries + i * stride, width * sizeof(bf16));
          queries = room.queries, stride = width;
        }
        for (int64_t c = 0; c < n; c += B)
          multiply(queries, stride, room.keys + c * width, L * width, width, room.scores + c, n);
        float share[B] = {};
        for (int64_t i = 0; i < m; i++)
          share[i] = weigh(room.scores + i * n, room.weights + i * n, tokens, n, scale);
        for (int64_t e = 0; e < width; e += B) {
          multiply(room.weights, n, room.values + e * n, L * n, n, room.sums, B);
          for (int64_t i = 0; i < m; i++) {
            bf16* to = out + (first + begin + i) * heads * width + at + e;
            store(to, load(room.sums + i * B) * share[i]);
            store(to + L, load(room.sums + i * B + L) * share[i]);
          }
        }
      }
    }
    tiles_off();
  }
}
#else
extern "C" int attention_is_here() { return 0; }
extern "C" void attend() {}
#endif
