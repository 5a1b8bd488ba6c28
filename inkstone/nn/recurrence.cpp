// The recurrences of RNN, LSTM and GRU over a batch laid out by steps (steps.py), compiled for this
// processor when they are first needed (compiled.py). The maps of the inputs and the gradients of
// the weights are torch's; here is what must wait for the step before.
//
// Rows of a batch do not touch each other: thread k of n takes the blocks k, k + n, ... of 16 rows
// through all steps, and nobody waits. Numbers are fp32, or bf16 in memory with fp32 sums where the
// processor multiplies bf16 tiles (AMX). Shapes: N tokens, R sequences, H units, G gates.

#include "simd.h"

namespace {

enum Kind { RNN = 0, LSTM = 1, GRU = 2 };
constexpr int gates(int kind) { return kind == LSTM ? 4 : kind == GRU ? 3 : 1; }

// What one call works on; rows are sorted by length, tokens stand step by step.
template <class E>
struct Job {
  int64_t H, n_steps, reverse, thread, n_threads, out_stride, rows;
  const int64_t* offsets;  // [n_steps + 1]
  E* x;                    // [N, G·H]: maps of the inputs; becomes activations, then gradients
  E* extra;                // [N, H]: LSTM's c, GRU's U_n h + b
  const E* packed;         // recurrent weights as `pack` lays them out
  const float* bias;       // [G·H], GRU's b'
  E* out;                  // [N, out_stride]
  E* h[2];                 // [rows up to a multiple of L, H]: states of this step and the next
  float* state;            // [same, H]: LSTM's c, GRU's h in full precision
  // backward
  const E* d_out;          // [N, out_stride]; null for zeros
  const E* h0;             // [same as state, H]
  const float* c0;
  float *dh, *dc;          // [same, H]: gradients of the last states; become those of the first
  float* d_bias;           // [n_threads, 2, G·H]: sums of the gates' gradients, and of GRU's inner
  E* scratch;              // [rows up to a multiple of L, G·H]

  int64_t active(int64_t t) const { return offsets[t + 1] - offsets[t]; }
  int64_t begin(int64_t order) const { return reverse ? n_steps - 1 - order : order; }
  // token of row r one step earlier in reading order, -1 at the beginning
  int64_t before(int64_t t, int64_t r) const {
    int64_t p = reverse ? t + 1 : t - 1;
    if (p < 0 || p >= n_steps || r >= active(p)) return -1;
    return offsets[p] + r;
  }
};

// --- products of a block of 16 rows with a matrix -----------------------------------------------
// fp32: packed is [columns / (W·16)][K][W][16]. bf16: tiles [columns / (W·16)][K / 32][W][16 × 32],
// a tile holding two rows of the matrix in turn, as AMX reads them.

template <int W>
INLINE void multiply(const float* a, int64_t stride, const float* b, int64_t K, float (*c)[L][L]) {
  for (int r0 = 0; r0 < L; r0 += 4) {
    V sum[4][W] = {};
    for (int64_t k = 0; k < K; k++) {
      V w[W];
      for (int g = 0; g < W; g++) w[g] = load(b + (k * W + g) * L);
      for (int r = 0; r < 4; r++) {
        V x = fill(a[(r0 + r) * stride + k]);
        for (int g = 0; g < W; g++) sum[r][g] += x * w[g];
      }
    }
    for (int r = 0; r < 4; r++)
      for (int g = 0; g < W; g++) store(c[g][r0 + r], sum[r][g]);
  }
}

#if TILES
template <int W>
INLINE void multiply(const bf16* a, int64_t stride, const bf16* b, int64_t K, float (*c)[L][L]) {
  _tile_zero(0);
  if (W > 1) _tile_zero(1);
  if (W > 2) _tile_zero(2);
  if (W > 3) _tile_zero(3);
  for (int64_t k = 0; k < K; k += 32, b += W * 512) {
    _tile_loadd(4, a + k, stride * 2);
    _tile_loadd(5, b, 64);
    _tile_dpbf16ps(0, 4, 5);
    if (W > 1) { _tile_loadd(6, b + 512, 64); _tile_dpbf16ps(1, 4, 6); }
    if (W > 2) { _tile_loadd(7, b + 1024, 64); _tile_dpbf16ps(2, 4, 7); }
    if (W > 3) { _tile_loadd(5, b + 1536, 64); _tile_dpbf16ps(3, 4, 5); }
  }
  _tile_stored(0, c[0], 64);
  if (W > 1) _tile_stored(1, c[1], 64);
  if (W > 2) _tile_stored(2, c[2], 64);
  if (W > 3) _tile_stored(3, c[3], 64);
}
#endif

template <class E> struct Tiles { static void on() {} static void off() {} };
#if TILES
template <> struct Tiles<bf16> {
  static void on() { tiles_on(); }
  static void off() { _tile_release(); }
};
#endif

// --- forward ------------------------------------------------------------------------------------

template <class E, int KIND>
void forward(const Job<E>& given) {
  const Job<E> job = given;  // a copy that no store can change
  constexpr int G = gates(KIND);
  const int64_t H = job.H, panel = H * G * L;
  alignas(64) float sums[G][L][L];
  Tiles<E>::on();
  for (int64_t order = 0; order < job.n_steps; order++) {
    const int64_t t = job.begin(order), n = job.active(t);
    const E* h = job.h[order % 2];
    E* next = job.h[1 - order % 2];
    for (int64_t j = 0; j < H; j += L) {
      for (int64_t row = job.thread * L; row < n; row += job.n_threads * L) {
        multiply<G>(h + row * H, H, job.packed + j / L * panel, H, sums);
        const int64_t m = n - row < L ? n - row : L;
        for (int64_t r = 0; r < m; r++) {
          const int64_t token = job.offsets[t] + row + r, at = (row + r) * H + j;
          E* x = job.x + token * G * H + j;
          V y;
          if (KIND == RNN) {
            y = tanh_of(load(x) + load(sums[0][r]));
          } else if (KIND == LSTM) {
            V i = sigmoid(load(x) + load(sums[0][r]));
            V f = sigmoid(load(x + H) + load(sums[1 % G][r]));
            V g = tanh_of(load(x + 2 * H) + load(sums[2 % G][r]));
            V o = sigmoid(load(x + 3 * H) + load(sums[3 % G][r]));
            V c = f * load(job.state + at) + i * g;
            store(job.state + at, c);
            store(job.extra + token * H + j, c);
            store(x, i), store(x + H, f), store(x + 2 * H, g), store(x + 3 * H, o);
            y = o * tanh_of(c);
          } else {
            V rr = sigmoid(load(x) + load(sums[0][r]) + load(job.bias + j));
            V z = sigmoid(load(x + H) + load(sums[1 % G][r]) + load(job.bias + H + j));
            V inner = load(sums[2 % G][r]) + load(job.bias + 2 * H + j);
            V c = tanh_of(load(x + 2 * H) + rr * inner);
            y = c + z * (load(job.state + at) - c);
            store(job.state + at, y);
            store(job.extra + token * H + j, inner);
            store(x, rr), store(x + H, z), store(x + 2 * H, c);
          }
          store(job.out + token * job.out_stride + j, y);
          store(next + at, y);
        }
      }
    }
  }
  Tiles<E>::off();
}

// --- backward -----------------------------------------------------------------------------------

template <class E, int KIND, int W>
INLINE void through_weights(const Job<E>& job, int64_t row, int64_t m, int64_t j, const E* packed) {
  constexpr int G = gates(KIND);
  const int64_t H = job.H;
  alignas(64) float sums[W][L][L];
  multiply<W>(job.scratch + row * G * H, G * H, packed + j * G * H, G * H, sums);
  for (int64_t r = 0; r < m; r++)
    for (int w = 0; w < W; w++) {
      float* d = job.dh + (row + r) * H + j + w * L;
      store(d, KIND == GRU ? load(d) + load(sums[w][r]) : load(sums[w][r]));
    }
}

template <class E, int KIND>
void backward(const Job<E>& given) {
  const Job<E> job = given;
  constexpr int G = gates(KIND);
  const int64_t H = job.H;
  float* d_bias = job.d_bias + job.thread * 2 * G * H;
  Tiles<E>::on();
  for (int64_t order = job.n_steps - 1; order >= 0; order--) {
    const int64_t t = job.begin(order), n = job.active(t);
    for (int64_t row = job.thread * L; row < n; row += job.n_threads * L) {
      const int64_t m = n - row < L ? n - row : L;
      for (int64_t r = 0; r < m; r++) {
        const int64_t token = job.offsets[t] + row + r, before = job.before(t, row + r);
        for (int64_t j = 0; j < H; j += L) {
          const int64_t at = (row + r) * H + j;
          E* x = job.x + token * G * H + j;
          E* ds = job.scratch + (row + r) * G * H + j;
          V dh = load(job.dh + at);
          if (job.d_out) dh += load(job.d_out + token * job.out_stride + j);
          V d[G], to_weights[G];
          if (KIND == RNN) {
            V y = load(job.out + token * job.out_stride + j);
            d[0] = dh * (1.0f - y * y);
          } else if (KIND == LSTM) {
            V i = load(x), f = load(x + H), g = load(x + 2 * H), o = load(x + 3 * H);
            V c = tanh_of(load(job.extra + token * H + j));
            V c_before = before < 0 ? load(job.c0 + at) : load(job.extra + before * H + j);
            V dc = load(job.dc + at) + dh * o * (1.0f - c * c);
            d[0] = dc * g * i * (1.0f - i);
            d[1 % G] = dc * c_before * f * (1.0f - f);
            d[2 % G] = dc * i * (1.0f - g * g);
            d[3 % G] = dh * c * o * (1.0f - o);
            store(job.dc + at, dc * f);
          } else {
            V rr = load(x), z = load(x + H), c = load(x + 2 * H);
            E* extra = job.extra + token * H + j;
            V inner = load(extra);
            V h = before < 0 ? load(job.h0 + at) : load(job.out + before * job.out_stride + j);
            V dc = dh * (1.0f - z) * (1.0f - c * c);
            d[0] = dc * inner * rr * (1.0f - rr);
            d[1 % G] = dh * (h - c) * z * (1.0f - z);
            d[2 % G] = dc;
            store(extra, dc * rr);
            store(job.dh + at, dh * z);
          }
          for (int g = 0; g < G; g++) {
            to_weights[g] = KIND == GRU && g == 2 ? load(job.extra + token * H + j) : d[g];
            store(x + g * H, d[g]);
            store(ds + g * H, to_weights[g]);
            store(d_bias + g * H + j, load(d_bias + g * H + j) + d[g]);
          }
          if (KIND == GRU) {
            float* inner_bias = d_bias + G * H + 2 * H + j;
            store(inner_bias, load(inner_bias) + to_weights[2 % G]);
          }
        }
      }
    }
    for (int64_t j = 0; j < H; j += 4 * L)
      for (int64_t row = job.thread * L; row < n; row += job.n_threads * L) {
        const int64_t m = n - row < L ? n - row : L;
        if (H - j >= 4 * L) through_weights<E, KIND, 4>(job, row, m, j, job.packed);
        else through_weights<E, KIND, 2>(job, row, m, j, job.packed);
      }
  }
  Tiles<E>::off();
}

template <class E>
int run(int kind, int direction, const Job<E>* job) {
  switch (kind * 2 + direction) {
    case 0: forward<E, RNN>(*job); return 0;
    case 1: backward<E, RNN>(*job); return 0;
    case 2: forward<E, LSTM>(*job); return 0;
    case 3: backward<E, LSTM>(*job); return 0;
    case 4: forward<E, GRU>(*job); return 0;
    case 5: backward<E, GRU>(*job); return 0;
  }
  return 1;
}

}  // namespace

// Whether bf16 can be had.
extern "C" int recurrence_has_bf16() { return tiles_granted(); }

extern "C" int recurrence_fp32(int kind, int direction, const void* job) {
  return run<float>(kind, direction, static_cast<const Job<float>*>(job));
}

extern "C" int recurrence_bf16(int kind, int direction, const void* job) {
#if TILES
  return run<bf16>(kind, direction, static_cast<const Job<bf16>*>(job));
#else
  return 1;
#endif
}
