// What stands between the matmuls of a training step, most of it for bf16 in memory: one pass
// through the cache where torch makes several. The threads are those of torch's own matmuls
// (OpenMP), so that none waits for a core on which another still spins.

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t RUN = 1 << 14;  // numbers that a thread takes at a time

INLINE float as_float(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
INLINE float sum(V x) {
  float total = 0;
  for (int i = 0; i < L; i++) total += x[i];
  return total;
}

// The last, shorter run of numbers goes through a whole vector.
template <class Operation>
INLINE void run(const bf16* a, const bf16* b, bf16* out, int64_t n, Operation operation) {
  int64_t i = 0;
  for (; i + L <= n; i += L) store(out + i, operation(load(a + i), load(b + i)));
  if (i < n) {
    bf16 x[L] = {}, y[L] = {}, z[L];
    const size_t bytes = (n - i) * sizeof(bf16);
    std::memcpy(x, a + i, bytes), std::memcpy(y, b + i, bytes);
    store(z, operation(load(x), load(y)));
    std::memcpy(out + i, z, bytes);
  }
}
template <class Operation>
INLINE void each(const bf16* a, const bf16* b, bf16* out, int64_t n, Operation operation) {
#pragma omp parallel for schedule(static) if (n > RUN)
  for (int64_t i = 0; i < n; i += RUN) run(a + i, b + i, out + i, std::min(RUN, n - i), operation);
}

// A copy of other width.
template <class From, class To>
INLINE void convert(const From* x, To* y, int64_t n) {
  const bool past = n > RUN && aligned(y);
#pragma omp parallel for schedule(static) if (n > RUN)
  for (int64_t start = 0; start < n; start += RUN) {
    const int64_t end = std::min(n, start + RUN);
    int64_t i = start;
    if (past)
      for (; i + L <= end; i += L) stream(y + i, load(x + i));
    else
      for (; i + L <= end; i += L) store(y + i, load(x + i));
    if (i < end) {
      From from[L] = {};
      To to[L];
      std::memcpy(from, x + i, (end - i) * sizeof(From));
      store(to, load(from));
      std::memcpy(y + i, to, (end - i) * sizeof(To));
    }
    if (past) streamed();
  }
}

// One number of 32 random bits for each place, whatever the order in which places are asked for: a
// mixture of multiplications and shifts (Steele et al. 2014), with a key of 64 bits.
INLINE U random_bits(uint64_t place, uint64_t key) {
  U x = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  x += (uint32_t)place;
  x ^= (uint32_t)key;
  x ^= x >> 16, x *= 0x7feb352du;
  x ^= (uint32_t)(key >> 32) ^ (uint32_t)(place >> 32);
  x ^= x >> 15, x *= 0x846ca68bu;
  x ^= x >> 16, x *= 0x9e3779b1u;
  return x ^ (x >> 15);
}

template <class T>
INLINE void thin_out(const T* x, T* y, int64_t n, uint64_t key, uint32_t below, float scale) {
#pragma omp parallel for schedule(static) if (n > RUN)
  for (int64_t start = 0; start < n; start += RUN) {
    const int64_t end = std::min(n, start + RUN);
    auto kept = [=](int64_t i, V v) { return random_bits(i, key) >= below ? v * scale : V{}; };
    int64_t i = start;
    for (; i + L <= end; i += L) store(y + i, kept(i, load(x + i)));
    if (i < end) {
      T from[L] = {}, to[L];
      std::memcpy(from, x + i, (end - i) * sizeof(T));
      store(to, kept(i, load(from)));
      std::memcpy(y + i, to, (end - i) * sizeof(T));
    }
  }
}

constexpr float C = 0.79788456f, CUBE = 0.044715f;  // sqrt(2 / pi); Hendrycks and Gimpel 2016

}  // namespace

extern "C" {

// Scores [rows, words], `stride` apart, become the gradient of the loss in place; see loss.py.
// facts: log Z, the target's score, and the mean score of every row.
void cross_entropy(bf16* scores, int64_t stride, int64_t rows, int64_t words, const int64_t* targets,
                   float z_loss, float smoothing, float* facts, int64_t gradient) {
  const int64_t whole = words / L * L;
#pragma omp parallel for schedule(static) if (rows * words > RUN)
  for (int64_t row = 0; row < rows; row++) {
    thread_local std::vector<float> powers;
    powers.resize(whole + L);
    bf16* s = scores + row * stride;
    bf16 rest[L];
    for (int i = 0; i < L; i++) rest[i] = whole + i < words ? s[whole + i] : 0xFF80;  // -inf
    V tops = load(rest), means = {};
    for (int64_t i = 0; i < whole; i += L) {
      V x = load(s + i);
      tops = x > tops ? x : tops;
      means += x;
    }
    float top = tops[0];
    for (int i = 1; i < L; i++) top = std::max(top, tops[i]);
    V sums = exp_of(load(rest) - top), more = {};
    store(&powers[whole], sums);
    int64_t i = 0;
    for (; i + 2 * L <= whole; i += 2 * L) {
      V x = exp_of(load(s + i) - top), y = exp_of(load(s + i + L) - top);
      store(&powers[i], x), store(&powers[i + L], y);
      sums += x, more += y;
    }
    for (; i < whole; i += L) {
      V x = exp_of(load(s + i) - top);
      store(&powers[i], x);
      sums += x;
    }
    const float z = sum(sums + more), log_z = top + std::log(z);
    float mean = sum(means);
    for (i = whole; i < words; i++) mean += as_float(s[i]);
    const int64_t target = targets[row];
    facts[3 * row] = log_z;
    facts[3 * row + 1] = as_float(s[target]);
    facts[3 * row + 2] = mean / words;
    if (!gradient) continue;
    const float scale = (1 + 2 * z_loss * log_z) / z, shift = smoothing / words;
    powers[target] += (smoothing - 1) / scale;
    for (i = 0; i < whole; i += L) store(s + i, load(&powers[i]) * scale - shift);
    store(rest, load(&powers[whole]) * scale - shift);
    std::memcpy(s + whole, rest, (words - whole) * sizeof(bf16));
  }
}

void narrow(const float* x, bf16* y, int64_t n) { convert(x, y, n); }
void widen(const bf16* x, float* y, int64_t n) { convert(x, y, n); }

// The sum of x^2 of each run of RUN numbers: added up in one order, however many threads there are.
void sums_of_squares(const float* x, int64_t n, double* sums) {
#pragma omp parallel for schedule(static) if (n > RUN)
  for (int64_t start = 0; start < n; start += RUN) {
    const int64_t end = std::min(n, start + RUN);
    V of[4] = {};
    int64_t i = start;
    for (; i + 4 * L <= end; i += 4 * L)
      for (int k = 0; k < 4; k++) {
        V v = load(x + i + k * L);
        of[k] += v * v;
      }
    double total = sum((of[0] + of[1]) + (of[2] + of[3]));
    for (; i < end; i++) total += (double)x[i] * x[i];
    sums[start / RUN] = total;
  }
}

// Numbers whose random bits lie below `below` become 0, the others grow by `scale`.
void dropout_bf16(const bf16* x, bf16* y, int64_t n, uint64_t key, uint32_t below, float scale) {
  thin_out(x, y, n, key, below, scale);
}
void dropout_fp32(const float* x, float* y, int64_t n, uint64_t key, uint32_t below, float scale) {
  thin_out(x, y, n, key, below, scale);
}

// GELU by its tanh form: y = x/2 (1 + tanh(C (x + CUBE x^3))).
void gelu(const bf16* x, bf16* y, int64_t n) {
  each(x, x, y, n, [](V a, V) {
    return 0.5f * a * (1.0f + tanh_of(C * a * (1.0f + CUBE * a * a)));
  });
}

void gelu_backward(const bf16* x, const bf16* d_y, bf16* d_x, int64_t n) {
  each(x, d_y, d_x, n, [](V a, V d) {
    V t = tanh_of(C * a * (1.0f + CUBE * a * a));
    return d * (0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * C * (1.0f + 3.0f * CUBE * a * a));
  });
}

// Rows of layer_norm(x + y) * weight + bias; the sum is not rounded before its statistics.
void norm_of_sum(const bf16* x, const bf16* y, const float* weight, const float* bias, bf16* out,
                 int64_t rows, int64_t width, float eps) {
#pragma omp parallel if (rows * width > RUN)
  {
    std::vector<float> held(width);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = row * width;
      float* total = held.data();
      V sums = fill(0), squares = fill(0);
      for (int64_t i = 0; i < width; i += L) {
        V both = load(x + at + i) + load(y + at + i);
        store(total + i, both);
        sums += both;
      }
      const float mean = sum(sums) / width;
      for (int64_t i = 0; i < width; i += L) {
        V from_mean = load(total + i) - mean;
        squares += from_mean * from_mean;
      }
      const float scale = 1.0f / std::sqrt(sum(squares) / width + eps);
      for (int64_t i = 0; i < width; i += L)
        store(out + at + i, (load(total + i) - mean) * scale * load(weight + i) + load(bias + i));
    }
  }
}

}  // extern "C"
