// x Wᵀ + b in bf16 with sums in fp32, and the exact GELU behind it in the same pass: for processors
// that multiply pairs of bf16 in vectors (AVX-512 BF16) and have no tile registers.
//
// A thread takes panels of 64 columns. 6 rows by 64 columns of sums stay in registers while a panel
// passes: 24 multiplications for 10 loads, so that the cores multiply and do not wait. What is made
// leaves in whole cache lines and past the caches: to fetch a line before it is overwritten costs the
// memory more than the next reader does.

#include <algorithm>

#include "simd.h"

#if PAIRS && !TILES
namespace {

constexpr int ROWS = 6, VECTORS = 4, COLUMNS = VECTORS * L;
constexpr int64_t BYTES = 1 << 18;  // of x, whose rows a thread keeps in its cache meanwhile

// R rows of x with one panel.
template <int R>
void block(const bf16* x, int64_t stride, const bf16* panel, int64_t width, const float* bias, bool with_gelu,
           bf16* out, int64_t columns, int64_t some, bool whole) {
  __m512 sums[R][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_load_ps(bias + v * L);
  for (int64_t k = 0; k < width; k += 2, panel += 2 * COLUMNS) {
    __m512bh w[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) w[v] = (__m512bh)_mm512_load_si512(panel + 2 * v * L);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m512bh a = pair(x + r * stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], a, w[v]);
    }
  }
  for (int r = 0; r < R; r++, out += columns)
    for (int v = 0; v < VECTORS; v += 2) {
      const int64_t here = std::min<int64_t>(2 * L, some - v * L);
      if (here <= 0) break;
      const V low = with_gelu ? gelu_of((V)sums[r][v]) : (V)sums[r][v];
      const V high = with_gelu ? gelu_of((V)sums[r][v + 1]) : (V)sums[r][v + 1];
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
      if (whole) _mm512_stream_si512((__m512i*)(out + v * L), both);
      else _mm512_mask_storeu_epi16(out + v * L, ~0u >> (2 * L - here), both);
    }
}

using Block = decltype(&block<1>);
constexpr Block BLOCKS[ROWS] = {block<1>, block<2>, block<3>, block<4>, block<5>, block<6>};

}  // namespace

extern "C" int product_is_here() { return 1; }

// x [n, width], rows `stride` apart; panels [columns / 64, width / 2, 64, 2] and bias [columns], both
// with zeros up to a whole panel and at the beginning of a cache line; out [n, columns].
extern "C" void product(const bf16* x, int64_t stride, const bf16* panels, const float* bias, int64_t n,
                        int64_t width, int64_t columns, int64_t with_gelu, bf16* out) {
  const int64_t few = std::max<int64_t>(ROWS, BYTES / (width * sizeof(bf16)) / ROWS * ROWS);
  const int64_t runs = (n + few - 1) / few, across = (columns + COLUMNS - 1) / COLUMNS;
  const bool whole = columns % (2 * L) == 0 && aligned(out);  // lines
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < runs * across; task++) {
    const int64_t first = task / across * few, last = std::min(n, first + few), c = task % across * COLUMNS;
    for (int64_t row = first; row < last; row += ROWS)
      BLOCKS[std::min<int64_t>(ROWS, last - row) - 1](x + row * stride, stride, panels + c * width, width, bias + c,
                                                      with_gelu, out + row * columns + c, columns, columns - c, whole);
    streamed();
  }
}
#else
extern "C" int product_is_here() { return 0; }
extern "C" void product() {}
#endif
