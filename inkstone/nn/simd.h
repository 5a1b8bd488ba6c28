// Sixteen numbers at a time: what the sources of this folder share. fp32 in registers, fp32 or bf16
// in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX512F__) || defined(__AMX_TILE__)
#include <immintrin.h>
#endif
#ifdef __AVX512BF16__  // vectors of pairs of bf16 can be multiplied
#define PAIRS 1
#else
#define PAIRS 0
#endif
#if PAIRS && defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#else
#define TILES 0
#endif

namespace {

constexpr int L = 16;  // numbers in a vector, rows in a block, columns in a tile
typedef float V __attribute__((vector_size(64)));
typedef float Vu __attribute__((vector_size(64), aligned(4)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t Hu __attribute__((vector_size(32), aligned(2)));
typedef uint16_t bf16;

#define INLINE inline __attribute__((always_inline))

INLINE V fill(float x) { return V{} + x; }
INLINE V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
INLINE void store(float* p, V x) { *reinterpret_cast<Vu*>(p) = x; }
INLINE V load(const bf16* p) {
#ifdef __AVX512F__
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
  return (V)(__builtin_convertvector(*reinterpret_cast<const Hu*>(p), U) << 16);
#endif
}
INLINE void store(bf16* p, V x) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  U bits = (U)x;
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<Hu*>(p) = __builtin_convertvector(bits, Hu);
#endif
}

// Past the caches, for what nobody reads soon: half of the traffic of a store. Aligned memory only.
INLINE bool aligned(const void* p) { return (uintptr_t)p % sizeof(V) == 0; }
INLINE void stream(float* p, V x) {
#ifdef __AVX512F__
  _mm512_stream_ps(p, (__m512)x);
#else
  store(p, x);
#endif
}
INLINE void stream(bf16* p, V x) {
#ifdef __AVX512BF16__
  _mm256_stream_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  store(p, x);
#endif
}
INLINE void streamed() {
#ifdef __AVX512F__
  _mm_sfence();
#endif
}

INLINE V divide(V a, V b) {
#ifdef __AVX512F__
  V r = (V)_mm512_rcp14_ps((__m512)b);  // 14 bits, and one step of Newton's
  return a * (r * (2.0f - b * r));
#else
  return a / b;
#endif
}

// Rational minimax approximation on [-9, 9], relative error 2e-8 before rounding; NaN stays NaN.
INLINE V tanh_of(V x) {
  x = x > 9.0f ? fill(9.0f) : x;
  x = x < -9.0f ? fill(-9.0f) : x;
  V u = x * x;
  V p = (((1.33548248e-08f * u + 2.06092209e-05f) * u + 3.49559728e-03f) * u + 1.33810341e-01f) * u + 1.0f;
  V q = (((7.77663104e-07f * u + 3.28564929e-04f) * u + 2.58770175e-02f) * u + 4.67143506e-01f) * u + 1.0f;
  return divide(x * p, q);
}
INLINE V sigmoid(V x) { return 0.5f * tanh_of(0.5f * x) + 0.5f; }

// x Φ(x), where 2 Φ(x) - 1 is a rational minimax approximation on [-5, 5]; off by 3e-6 at most.
INLINE V gelu_of(V x) {
  const V z = x > 5.0f ? fill(5.0f) : x < -5.0f ? fill(-5.0f) : x;
  const V u = z * z, half = 0.5f * x;
  const V p = (((2.33817604e-05f * u + 0.00122968372f) * u + 0.0144420171f) * u + 0.150506903f) * u + 0.797856932f;
  const V q = ((((9.59407575e-07f * u + 0.000231867422f) * u + 0.00429257461f) * u + 0.0524438939f) * u + 0.355171081f) *
                  u + 1.0f;
  return half + half * divide(z * p, q);
}

// e^x for x <= 0, relative error 2e-7 (the polynomial of Cephes' expf); 0 below -105, or where there
// is no AVX-512 below -87; NaN stays NaN.
INLINE V exp_of(V x) {
#ifdef __AVX512F__
  V low = (V)_mm512_max_ps(_mm512_set1_ps(-150.0f), (__m512)x);  // the second where one is NaN
  V n = (V)_mm512_roundscale_ps((__m512)(low * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  V low = x < -87.0f ? fill(-87.0f) : x;
  V t = low * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits of t are the whole number n
  V n = t - 12582912.0f;
#endif
  V r = low - n * 0.693359375f + n * 2.12194440e-4f;
  V p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
         1.6666665459e-1f) * r + 5.0000001201e-1f;
  V y = p * r * r + r + 1.0f;
#ifdef __AVX512F__
  return (V)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  y = (V)((U)y + ((U)t << 23));
  y = x < -87.0f ? fill(0.0f) : y;
  return x == x ? y : x;
#endif
}

#if PAIRS
INLINE __m512bh pair(const bf16* p) {  // to every place
  int32_t two;
  std::memcpy(&two, p, sizeof two);
  return (__m512bh)_mm512_set1_epi32(two);
}
#endif

#if TILES
// Every tile register holds 16 rows of 64 bytes.
struct alignas(64) TileShape {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
INLINE void tiles_on() {
  TileShape shape;
  asm volatile("" ::"r"(&shape) : "memory");  // the compiler must not keep it in registers
  _tile_loadconfig(&shape);
}
INLINE void tiles_off() { _tile_release(); }
#else
INLINE void tiles_on() {}
INLINE void tiles_off() {}
#endif

// Asks the kernel of the operating system for the tile registers.
INLINE bool tiles_granted() {
#if TILES
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
#else
  return false;
#endif
}

}  // namespace
