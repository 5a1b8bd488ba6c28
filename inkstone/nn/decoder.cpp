// A pre-norm Transformer decoder over keys and values in pages: one pass for the new tokens of many
// texts, side by side. GPT-2's and Llama's kinds: layer or RMS norm, learned or rotary positions,
// heads that share keys, GELU or SwiGLU.
//
// The threads stay together for the whole pass and meet between its phases. A sum is made in one
// order whatever else is in the pass, so that a text's numbers do not depend on the others.
//
// A text may be read with an adapter (LoRA): beside W x, which is computed for all rows together, its
// rows get s B (A x). A row finds A x when its input is laid out, and adds B of that to its results
// panel by panel, in the order of ranks: it need not stand beside other rows of its adapter, and what
// it gets does not depend on them.

#include "reading.h"

#if PANELS
namespace {

constexpr int GATES = 96;  // rows whose gates are held at a time, in whole blocks

struct Layer {
  Norm attention_norm;
  Map qkv;
  const float *q_norm, *k_norm;  // of every head, or nullptr
  Map o;
  Norm mlp_norm;
  Map gate, up, down;  // gate: none, or a map of up's shape
  int64_t window;      // tokens that a token sees, itself included; 0: all
  uint16_t *keys;      // [pages, kv heads, head_dim, PAGE]
  uint16_t *values;    // [pages, kv heads, PAGE, head_dim]
};

struct Stack {
  int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff;
  int64_t rms;        // whether norms are RMS norms
  int64_t wide_cache;  // whether keys and values are fp32; else fp16
  float eps;
  const float *cos, *sin;  // [positions, head_dim / 2], or nullptr
  const Layer* layers;
  Norm norm;
  Map head;
};

// What an adapter adds to a map.
struct Change {
  const void* a;         // [rank, d_in]
  const void* b;         // of every panel the ranks that reach it: [ranks, WIDE]
  const int64_t* spans;  // of every panel: its first rank, how many, and where they begin in b
  int64_t rank;          // in whole blocks; 0: nothing
};

enum { QKV, O, GATE, UP, DOWN, MAPS };
constexpr int RANKS = 8;  // of a block: sums of A x that run side by side

struct Adapters {
  const Change* changes;  // [adapters, layers, MAPS]
  int64_t narrow;         // whether their numbers are bf16; else fp32
  int64_t width;          // ranks of one input, at most
  const int64_t* rows;    // [n]: the adapter of a token, counted from 1; 0: none
};

struct Step {
  int64_t n, n_texts, width;  // tokens; texts; pages of a row of `tables`
  const int64_t *starts, *counts, *tables;
  float* x;  // [n, d_model]: embeddings, then hidden states
  const Adapters* adapters;  // or nullptr
};

struct Pass {
  const Stack& s;
  const Step& step;
  float *qkv, *mixed, *scores;
  int64_t width, room;
  Rows narrow, wide;  // inputs of maps from d_model or all heads, and from d_ff
  float* low;         // [n, ranks]: A x of the input that was laid out last

  // What the adapter of a row adds to a map; nullptr: nothing.
  INLINE const Change* change(const Layer& layer, int map, int64_t i) const {
    if (!step.adapters || !step.adapters->rows[i]) return nullptr;
    const int64_t place = (step.adapters->rows[i] - 1) * s.n_layers + (&layer - s.layers);
    const Change* found = step.adapters->changes + place * MAPS + map;
    return found->rank ? found : nullptr;
  }

  // A x of a row, behind what is there for another map of the same input; gives where it ends.
  INLINE int64_t lower(const Layer& layer, int map, const Rows& x, int64_t i, int64_t from = 0) const {
    const Change* found = change(layer, map, i);
    if (!found) return from;
    float* to = low + i * step.adapters->width + from;
    step.adapters->narrow ? lower_by<bf16>(*found, x, i, to) : lower_by<float>(*found, x, i, to);
    return from + found->rank;
  }
  template <class T>
  static __attribute__((noinline)) void lower_by(const Change& change, const Rows& x, int64_t i, float* to) {
    const T* a = (const T*)change.a;
    for (int64_t k = 0; k < change.rank; k += RANKS, a += RANKS * x.d_in) {
      V sums[RANKS] = {};
      for (int64_t j = 0; j < x.d_in; j += L) {
        const V in = x.at(i, j);
#pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) sums[r] += in * load(a + r * x.d_in + j);
      }
      for (int r = 0; r < RANKS; r++) to[k + r] = sum(sums[r]);
    }
  }

  // s B (A x) is added to 32 results of a row.
  INLINE void raise(const Layer& layer, int map, int64_t i, int64_t c, V& a, V& b) const {
    const Change* found = change(layer, map, i);
    if (!found) return;
    const float* from = low + i * step.adapters->width;
    if (map == UP)
      if (const Change* gate = change(layer, GATE, i)) from += gate->rank;
    const int64_t* span = found->spans + c / WIDE * 3;
    step.adapters->narrow ? raise_by<bf16>(*found, span, from, a, b) : raise_by<float>(*found, span, from, a, b);
  }
  template <class T>
  static __attribute__((noinline)) void raise_by(const Change& change, const int64_t* span, const float* from, V& a, V& b) {
    const T* up = (const T*)change.b + span[2];
    V more[2] = {};
    for (int64_t k = 0; k < span[1]; k++, up += WIDE) {
      const V by = fill(from[span[0] + k]);
      more[0] += by * load(up), more[1] += by * load(up + L);
    }
    a += more[0], b += more[1];
  }

  // then(row), behind each.
  template <class Then>
  void normed(const Norm& norm, const Rows& to, int me, int of, const Then& then) const {
    run(step.n, me, of, [&](int64_t i) {
      const Normed row(step.x + i * s.d_model, s.d_model, norm, s.rms, s.eps);
      for (int64_t k = 0; k < s.d_model; k += 2 * L) to.put(i, k, row(k), row(k + L));
      then(i);
    });
  }

  void add(const Layer& layer, int which, const Map& map, const Rows& x, int me, int of) const {
    run(panels_of(map), me, of, [&](int64_t p) {
      apply(map, p, x, 0, step.n, [&](int64_t i, int64_t c, V a, V b) {
        raise(layer, which, i, c, a, b);
        float* to = step.x + i * s.d_model + c;
        store(to, load(to) + a), store(to + L, load(to + L) + b);
      });
    });
  }

  template <class C>
  Pages<C> pages(const Layer& layer) const {
    return {(C*)layer.keys, (C*)layer.values, s.n_kv_heads, s.head_dim, s.head_dim};
  }

  // Queries and keys are turned to their positions, keys and values go to their pages.
  template <class C>
  void file(const Layer& layer, int me, int of) const {
    const int64_t e = s.head_dim, heads = s.n_heads + s.n_kv_heads;
    const float scale = 1 / std::sqrt(float(e));
    for (int64_t text = 0, row = 0; text < step.n_texts; row += step.counts[text++]) {
      const int64_t* table = step.tables + text * step.width;
      run(step.counts[text], me, of, [&](int64_t i) {
        float* const from = qkv + (row + i) * width;
        const int64_t position = step.starts[text] + i, slot = position % PAGE;
        const int64_t page = table[position / PAGE];
        for (int64_t h = 0; h < heads; h++) {
          float* x = from + h * e;
          const bool is_key = h >= s.n_heads;
          if (const float* norm = is_key ? layer.k_norm : layer.q_norm) {
            const Norm weight = {norm, nullptr};
            const Normed normed(x, e, weight, true, s.eps);
            for (int64_t k = 0; k < e; k += L) store(x + k, normed(k));
          }
          if (s.cos)
            for (int64_t k = 0; k < e / 2; k++) {
              const float c = s.cos[position * (e / 2) + k], d = s.sin[position * (e / 2) + k];
              const float a = x[k], b = x[k + e / 2];
              x[k] = a * c - b * d, x[k + e / 2] = b * c + a * d;
            }
          if (is_key) {
            pages<C>(layer).file_key(page, slot, h - s.n_heads, x);
          } else {
            for (int64_t k = 0; k < e; k++) x[k] *= scale;
          }
        }
        for (int64_t h = 0; h < s.n_kv_heads; h++) pages<C>(layer).file_value(page, slot, h, from + (heads + h) * e);
      });
    }
  }

  template <class C, int R>
  void look(const Layer& layer, int64_t text, int64_t row, int64_t i, int64_t from, int64_t to, float* own) const {
    const int64_t wide = s.n_heads * s.head_dim;
    Attention<C, R>{pages<C>(layer), s.n_heads / s.n_kv_heads, layer.window, true, qkv + (row + i) * width, width,
                    step.tables + text * step.width, step.starts[text] + i, from, to, own, room, mixed + (row + i) * wide}();
  }

  // A token that comes alone is shared out by heads, which lie side by side; of a run of tokens, a few
  // at a time and head by head, whose keys then stay in the cache.
  template <class C>
  void look(const Layer& layer, int me, int of) const {
    const int64_t shared = s.n_heads / s.n_kv_heads;
    float* own = scores + me * std::max(s.n_heads, shared * QUERIES) * room;
    int64_t turn = 0;
    for (int64_t text = 0, row = 0; text < step.n_texts; row += step.counts[text++]) {
      const int64_t n = step.counts[text];
      if (n == 1) {
        const int64_t from = s.n_kv_heads * me / of, to = s.n_kv_heads * (me + 1) / of;
        if (from < to) look<C, 1>(layer, text, row, 0, from, to, own);
        continue;
      }
      for (int64_t h = 0; h < s.n_kv_heads; h++)
        for (int64_t i = 0; i < n; i += QUERIES) {
          if (turn++ % of != me) continue;
          by_queries(std::min<int64_t>(QUERIES, n - i), [&](auto some) {
            look<C, some.value>(layer, text, row, i, h, h + 1, own);
          });
        }
    }
  }

  void feed(const Layer& layer, int me, int of) const {
    run(panels_of(layer.up), me, of, [&](int64_t p) {
      if (!layer.gate.panels) {
        apply(layer.up, p, narrow, 0, step.n, [&](int64_t i, int64_t c, V a, V b) {
          raise(layer, UP, i, c, a, b);
          wide.put(i, c, gelu(a), gelu(b));
        });
        return;
      }
      float gates[GATES * WIDE];
      for (int64_t first = 0; first < step.n; first += GATES) {
        const int64_t some = std::min<int64_t>(GATES, step.n - first);
        apply(layer.gate, p, narrow, first, some, [&](int64_t i, int64_t c, V a, V b) {
          raise(layer, GATE, i, c, a, b);
          float* to = gates + (i - first) * WIDE;
          store(to, a * sigmoid(a)), store(to + L, b * sigmoid(b));
        });
        apply(layer.up, p, narrow, first, some, [&](int64_t i, int64_t c, V a, V b) {
          raise(layer, UP, i, c, a, b);
          const float* gate = gates + (i - first) * WIDE;
          wide.put(i, c, load(gate) * a, load(gate + L) * b);
        });
      }
    });
  }

  // Hendrycks and Gimpel 2016, section 2.
  static INLINE V gelu(V x) {
    return 0.5f * x * (1.0f + tanh_of(0.797884561f * (x + 0.044715f * x * x * x)));
  }

  void operator()(int me, int of, Meeting& meet) const {
    const int64_t e = s.head_dim;
    for (int64_t l = 0; l < s.n_layers; l++) {
      const Layer& layer = s.layers[l];
      normed(layer.attention_norm, narrow, me, of, [&](int64_t i) { lower(layer, QKV, narrow, i); });
      meet();
      run(panels_of(layer.qkv), me, of, [&](int64_t p) {
        apply(layer.qkv, p, narrow, 0, step.n, [&](int64_t i, int64_t c, V a, V b) {
          raise(layer, QKV, i, c, a, b);
          float* to = qkv + i * width + c;
          store(to, a), store(to + L, b);
        });
      });
      meet();
      s.wide_cache ? file<float>(layer, me, of) : file<uint16_t>(layer, me, of);
      meet();
      s.wide_cache ? look<float>(layer, me, of) : look<uint16_t>(layer, me, of);
      meet();
      const Rows heads = {narrow.data, narrow.scale, narrow.shift, s.n_heads * e, narrow.format};
      run(step.n, me, of, [&](int64_t i) {
        const float* from = mixed + i * s.n_heads * e;
        for (int64_t k = 0; k < s.n_heads * e; k += 2 * L) heads.put(i, k, load(from + k), load(from + k + L));
        lower(layer, O, heads, i);
      });
      meet();
      add(layer, O, layer.o, heads, me, of);
      meet();
      normed(layer.mlp_norm, narrow, me, of, [&](int64_t i) {
        lower(layer, UP, narrow, i, lower(layer, GATE, narrow, i));
      });
      meet();
      feed(layer, me, of);
      meet();
      if (step.adapters) {  // a row of `wide` is put together by all threads
        run(step.n, me, of, [&](int64_t i) { lower(layer, DOWN, wide, i); });
        meet();
      }
      add(layer, DOWN, layer.down, wide, me, of);
      meet();
    }
    run(step.n, me, of, [&](int64_t i) {
      float* x = step.x + i * s.d_model;
      const Normed row(x, s.d_model, s.norm, s.rms, s.eps);
      for (int64_t k = 0; k < s.d_model; k += L) store(x + k, row(k));
    });
  }
};

Pass plan(const Stack& s, const Step& step, int64_t longest, int threads, Room& room) {
  const int64_t heads = s.n_heads * s.head_dim, format = s.layers[0].qkv.format;
  const int64_t width = heads + 2 * s.n_kv_heads * s.head_dim, long_room = (longest + PAGE) / PAGE * PAGE;
  float* qkv = room.take<float>(step.n * width + WIDE);
  float* mixed = room.take<float>(step.n * heads);
  float* scores = room.take<float>(threads * std::max(s.n_heads, s.n_heads / s.n_kv_heads * QUERIES) * long_room);
  const Rows narrow = room.rows(step.n, std::max(s.d_model, heads), format);
  const Rows wide = room.rows(step.n, s.d_ff, format);
  float* low = room.take<float>(step.adapters ? step.n * step.adapters->width : 0);
  return {s, step, qkv, mixed, scores, width, long_room,
          {narrow.data, narrow.scale, narrow.shift, s.d_model, format}, wide, low};
}

}  // namespace

extern "C" int decoder_is_here() { return 1; }

// Bytes that `decoder_read` needs for n tokens, the longest text with its past `longest`.
extern "C" int64_t decoder_room(const Stack* s, int64_t n, int64_t longest, int64_t threads, const Adapters* adapters) {
  Room room = {nullptr};
  Step step = {n};
  step.adapters = adapters;
  plan(*s, step, longest, threads, room);
  return (int64_t)room.at + 64;
}

extern "C" void decoder_read(const Stack* s, int64_t n, int64_t n_texts, int64_t width, const int64_t* starts,
                             const int64_t* counts, const int64_t* tables, int64_t longest, int64_t threads,
                             uint8_t* memory, float* x, const Adapters* adapters) {
  Room room = {memory};
  const Step step = {n, n_texts, width, starts, counts, tables, x, adapters};
  const Pass pass = plan(*s, step, longest, threads, room);
  together(threads, [&](int me, int of, Meeting& meet) { pass(me, of, meet); });
}

// Scores of every word: x [n, d_model] → out [n, d_out]; memory as of Rows::bytes.
extern "C" void decoder_scores(const Stack* s, const float* x, int64_t n, int64_t threads, uint8_t* memory, float* out) {
  Room room = {memory};
  const Map& head = s->head;
  const Rows rows = room.rows(n, s->d_model, head.format);
  together(threads, [&](int me, int of, Meeting& meet) {
    run(n, me, of, [&](int64_t i) {
      for (int64_t k = 0; k < s->d_model; k += 2 * L)
        rows.put(i, k, load(x + i * s->d_model + k), load(x + i * s->d_model + k + L));
    });
    meet();
    run(panels_of(head), me, of, [&](int64_t p) {
      apply(head, p, rows, 0, n, [&](int64_t i, int64_t c, V a, V b) {
        float* to = out + i * head.d_out + c;
        const int64_t left = head.d_out - c;
        if (left >= WIDE) {
          store(to, a), store(to + L, b);
        } else {
          _mm512_mask_storeu_ps(to, left >= L ? 0xFFFF : (1u << left) - 1, (__m512)a);
          if (left > L) _mm512_mask_storeu_ps(to + L, (1u << (left - L)) - 1, (__m512)b);
        }
      });
    });
  });
}
#else
extern "C" int decoder_is_here() { return 0; }
#endif
