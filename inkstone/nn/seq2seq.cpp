// A Transformer that reads one text and writes another: the layers of its encoder over whole texts
// without padding, and those of its decoder over keys and values in pages, one pass for the new tokens
// of many texts. Pre-norm or post-norm, layer norms, maps with biases.
//
// Of few tokens the threads do a pass together, as in `decoder.cpp`, and meet between its phases. Many
// are cut into parts of whole texts, which stay in a thread's own cache from the first layer to the last.

#include "reading.h"

#include <vector>

#if PANELS
namespace {

constexpr int64_t PART = 96;  // tokens that a thread takes at a time

struct Layer {
  Norm attention_norm;
  Map qkv, o;
  Norm cross_norm;  // of a decoder, as the maps that follow
  Map cross_q, cross_kv, cross_o;
  Norm mlp_norm;
  Map up, down;
  void *keys, *values;                // of its own text
  void *memory_keys, *memory_values;  // of what the encoder read
};

enum Activation : int64_t { RELU, GELU, SWISH };

struct Stack {
  int64_t n_layers, d_model, n_heads, head_dim, d_ff;
  int64_t pre_norm, causal, activation;
  int64_t wide_cache;  // whether keys and values are fp32; else fp16
  float eps;
  const Layer* layers;
  Norm norm;  // behind the last layer; without a weight there is none
};

// Tokens of texts side by side; row i of `tables` has the pages of text i.
struct Texts {
  int64_t n, n_texts, width;  // tokens; texts; pages of a row
  const int64_t *starts, *counts, *tables;  // tokens of a text that were there before, and new ones
};

// What `beams` texts each look at.
struct Memory {
  int64_t beams, width;
  const int64_t *lengths, *tables;
};

template <class C>
struct Pass {
  const Stack& s;
  const Texts& texts;
  const Memory& memory;
  float* x;                     // [n, d_model]: embeddings, then hidden states
  float *qkv, *mixed, *scores;  // [n, 3 heads], [n, padded heads], for every thread
  int64_t room;
  Rows narrow, wide;  // inputs of maps from d_model, and from d_ff

  int64_t heads() const { return s.n_heads * s.head_dim; }
  int64_t padded() const { return (s.head_dim + L - 1) / L * L; }
  Pages<C> pages(void* keys, void* values) const {
    return {(C*)keys, (C*)values, s.n_heads, s.head_dim, padded()};
  }

  // What the next map reads: x, once it has gone through the norm `after` the part before or, on the
  // way, through the one `before` the part that follows.
  void ready(const Norm* after, const Norm* before, int me, int of) const {
    run(texts.n, me, of, [&](int64_t i) {
      float* row = x + i * s.d_model;
      if (after) {
        const Normed y(row, s.d_model, *after, false, s.eps);
        for (int64_t k = 0; k < s.d_model; k += L) store(row + k, y(k));
      }
      if (before) {
        const Normed y(row, s.d_model, *before, false, s.eps);
        for (int64_t k = 0; k < s.d_model; k += 2 * L) narrow.put(i, k, y(k), y(k + L));
      } else {
        for (int64_t k = 0; k < s.d_model; k += 2 * L) narrow.put(i, k, load(row + k), load(row + k + L));
      }
    });
  }

  // Through a map, into [n, stride].
  void through(const Map& map, float* out, int64_t stride, int me, int of) const {
    run(panels_of(map), me, of, [&](int64_t p) {
      apply(map, p, narrow, 0, texts.n, [&](int64_t i, int64_t c, V a, V b) {
        store(out + i * stride + c, a), store(out + i * stride + c + L, b);
      });
    });
  }

  void add(const Map& map, const Rows& from, int me, int of) const {
    run(panels_of(map), me, of, [&](int64_t p) {
      apply(map, p, from, 0, texts.n, [&](int64_t i, int64_t c, V a, V b) {
        float* to = x + i * s.d_model + c;
        store(to, load(to) + a), store(to + L, load(to + L) + b);
      });
    });
  }

  // work(text, position, row) for this thread's share of all tokens.
  template <class Work>
  void each(int me, int of, const Work& work) const {
    const int64_t first = texts.n * me / of, last = texts.n * (me + 1) / of;
    for (int64_t text = 0, row = 0; text < texts.n_texts && row < last; row += texts.counts[text++])
      for (int64_t i = std::max(first, row); i < std::min(last, row + texts.counts[text]); i++)
        work(text, texts.starts[text] + i - row, i);
  }

  // Keys and values, which stand in `from` behind each other, go to their pages.
  void file(const Pages<C>& to, const float* from, int64_t stride, int me, int of) const {
    each(me, of, [&](int64_t text, int64_t position, int64_t row) {
      const int64_t page = texts.tables[text * texts.width + position / PAGE];
      const float* x = from + row * stride;
      for (int64_t h = 0; h < s.n_heads; h++) {
        to.file_key(page, position % PAGE, h, x + h * s.head_dim);
        to.file_value(page, position % PAGE, h, x + heads() + h * s.head_dim);
      }
    });
  }

  // Queries [n, 3 heads] look at pages, a few of one head at a time. A group of them stands together
  // and shares a row of `tables`: `count` says how many there are, `seen` how many tokens the first sees.
  template <class Count, class Seen>
  void look(const Pages<C>& at, bool ahead, int64_t groups, const int64_t* tables, int64_t width, const Count& count,
            const Seen& seen, int me, int of) const {
    float* own = scores + me * QUERIES * room;
    int64_t all = 0, turn = 0;
    for (int64_t g = 0; g < groups; g++) all += (count(g) + QUERIES - 1) / QUERIES * s.n_heads;
    const int64_t first = all * me / of, last = all * (me + 1) / of;
    for (int64_t g = 0, row = 0; g < groups; row += count(g++))
      for (int64_t i = 0; i < count(g); i += QUERIES)
        for (int64_t h = 0; h < s.n_heads; h++, turn++) {
          if (turn < first || turn >= last) continue;
          by_queries(std::min<int64_t>(QUERIES, count(g) - i), [&](auto some) {
            Attention<C, some.value>{at, 1, 0, ahead, qkv + (row + i) * 3 * heads(), 3 * heads(), tables + g * width,
                                     seen(g) - 1 + (ahead ? i : 0), h, h + 1, own, room,
                                     mixed + (row + i) * s.n_heads * padded()}();
          });
        }
  }

  // What was found becomes the input of the map that follows.
  void gather(const Rows& to, int me, int of) const {
    run(texts.n, me, of, [&](int64_t i) {
      float* row = mixed + i * s.n_heads * padded();
      if (padded() != s.head_dim)
        for (int64_t h = 1; h < s.n_heads; h++)
          std::memmove(row + h * s.head_dim, row + h * padded(), s.head_dim * sizeof(float));
      for (int64_t k = 0; k < heads(); k += 2 * L) to.put(i, k, load(row + k), load(row + k + L));
    });
  }

  void scale(int me, int of) const {
    const float by = 1 / std::sqrt(float(s.head_dim));
    run(texts.n, me, of, [&](int64_t i) {
      for (int64_t k = 0; k < heads(); k++) qkv[i * 3 * heads() + k] *= by;
    });
  }

  void feed(const Layer& layer, int me, int of) const {
    run(panels_of(layer.up), me, of, [&](int64_t p) {
      apply(layer.up, p, narrow, 0, texts.n, [&](int64_t i, int64_t c, V a, V b) { wide.put(i, c, active(a), active(b)); });
    });
  }
  INLINE V active(V x) const {
    return s.activation == RELU ? (V)_mm512_max_ps((__m512)x, _mm512_setzero_ps())
           : s.activation == GELU ? gelu_of(x) : x * sigmoid(x);
  }

  void operator()(int me, int of, Meeting& meet) const {
    const Norm* after = nullptr;
    const Rows found = {narrow.data, narrow.scale, narrow.shift, heads(), narrow.format};
    const auto begin = [&](const Norm& norm) {
      ready(after, s.pre_norm ? &norm : nullptr, me, of);
      after = s.pre_norm ? nullptr : &norm;
      meet();
    };
    const auto end = [&](const Map& map) {
      meet();
      gather(found, me, of);
      meet();
      add(map, found, me, of);
      meet();
    };
    for (int64_t l = 0; l < s.n_layers; l++) {
      const Layer& layer = s.layers[l];
      begin(layer.attention_norm);
      through(layer.qkv, qkv, 3 * heads(), me, of);
      meet();
      const Pages<C> own = pages(layer.keys, layer.values);
      scale(me, of);
      file(own, qkv + heads(), 3 * heads(), me, of);
      meet();
      look(own, s.causal, texts.n_texts, texts.tables, texts.width, [&](int64_t g) { return texts.counts[g]; },
           [&](int64_t g) { return texts.starts[g] + (s.causal ? 1 : texts.counts[g]); }, me, of);
      end(layer.o);
      if (layer.cross_q.panels) {
        begin(layer.cross_norm);
        through(layer.cross_q, qkv, 3 * heads(), me, of);
        meet();
        scale(me, of);
        meet();
        look(pages(layer.memory_keys, layer.memory_values), false, texts.n_texts / memory.beams, memory.tables,
             memory.width, [&](int64_t) { return memory.beams; }, [&](int64_t g) { return memory.lengths[g]; }, me, of);
        end(layer.cross_o);
      }
      begin(layer.mlp_norm);
      feed(layer, me, of);
      meet();
      add(layer.down, wide, me, of);
      meet();
    }
    const Norm* last = after ? after : s.norm.weight ? &s.norm : nullptr;
    if (last)
      run(texts.n, me, of, [&](int64_t i) {
        const Normed y(x + i * s.d_model, s.d_model, *last, false, s.eps);
        for (int64_t k = 0; k < s.d_model; k += L) store(x + i * s.d_model + k, y(k));
      });
  }

  // Keys and values of the memory, of every layer of a decoder.
  void remember(int me, int of, Meeting& meet) const {
    ready(nullptr, nullptr, me, of);
    meet();
    for (int64_t l = 0; l < s.n_layers; l++) {
      through(s.layers[l].cross_kv, qkv, 2 * heads(), me, of);
      meet();
      file(pages(s.layers[l].memory_keys, s.layers[l].memory_values), qkv, 2 * heads(), me, of);
      meet();
    }
  }
};

template <class C>
Pass<C> plan(const Stack& s, const Texts& texts, const Memory& memory, float* x, int64_t longest, int64_t threads,
             Room& room) {
  const int64_t heads = s.n_heads * s.head_dim, padded = s.n_heads * ((s.head_dim + L - 1) / L * L);
  const int64_t format = s.layers[0].o.format, long_room = (longest + PAGE) / PAGE * PAGE;
  float* qkv = room.take<float>(texts.n * 3 * heads + WIDE);
  float* mixed = room.take<float>(texts.n * padded);
  float* scores = room.take<float>(threads * QUERIES * long_room);
  const Rows narrow = room.rows(texts.n, std::max(s.d_model, heads), format);
  const Rows wide = room.rows(texts.n, s.d_ff, format);
  return {s, texts, memory, x, qkv, mixed, scores, long_room,
          {narrow.data, narrow.scale, narrow.shift, s.d_model, format}, wide};
}

template <class C>
void copy_pages(const Stack& s, const int64_t* from, const int64_t* to, int64_t n, int me, int of) {
  const int64_t padded = (s.head_dim + L - 1) / L * L;
  const int64_t keys = s.n_heads * s.head_dim * PAGE, values = s.n_heads * padded * PAGE;
  run(n * s.n_layers, me, of, [&](int64_t task) {
    const Layer& layer = s.layers[task / n];
    const int64_t i = task % n;
    std::memcpy((C*)layer.keys + to[i] * keys, (C*)layer.keys + from[i] * keys, keys * sizeof(C));
    std::memcpy((C*)layer.values + to[i] * values, (C*)layer.values + from[i] * values, values * sizeof(C));
  });
}

struct Part {
  int64_t text, n_texts, row, n;  // texts from `text` on, tokens from `row` on
};

std::vector<Part> cut(const Texts& texts, int64_t beams) {
  std::vector<Part> parts;
  for (int64_t text = 0, row = 0; text < texts.n_texts; text += beams) {
    int64_t n = 0;
    for (int64_t i = text; i < text + beams; i++) n += texts.counts[i];
    if (parts.empty() || parts.back().n + n > PART) parts.push_back({text, 0, row, 0});
    parts.back().n_texts += beams, parts.back().n += n, row += n;
  }
  return parts;
}

// Bytes for n tokens; `threads`: that look at pages at the same time.
int64_t bytes(const Stack& s, int64_t n, int64_t longest, int64_t threads) {
  Room room = {nullptr};
  plan<float>(s, {n}, {1}, nullptr, longest, threads, room);
  return ((int64_t)room.at + 127) / 64 * 64;
}

template <class C>
void read(const Stack& s, const Texts& texts, const Memory& memory, int64_t longest, int64_t threads, int64_t n_copies,
          const int64_t* from, const int64_t* to, bool remembers, uint8_t* at, float* x) {
  const auto parts = cut(texts, memory.beams);
  const bool apart = (int64_t)parts.size() >= 2 * threads;
  int64_t most = 0;
  for (const Part& part : parts) most = std::max(most, part.n);
  const int64_t share = bytes(s, most, longest, 1);
  Room all = {at};
  const auto whole = plan<C>(s, texts, memory, x, longest, threads, all);
  std::atomic<int64_t> next{0};
  together(threads, [&](int me, int of, Meeting& meet) {
    if (n_copies) {
      copy_pages<C>(s, from, to, n_copies, me, of);
      meet();
    }
    if (!apart) return remembers ? whole.remember(me, of, meet) : whole(me, of, meet);
    for (int64_t i; (i = next++) < (int64_t)parts.size();) {
      const Part& part = parts[i];
      const int64_t text = part.text, first = text / memory.beams;
      const Texts some = {part.n, part.n_texts, texts.width, texts.starts + text, texts.counts + text,
                          texts.tables + text * texts.width};
      const Memory theirs = {memory.beams, memory.width, memory.lengths + first, memory.tables + first * memory.width};
      Room room = {at + me * share};
      Meeting alone;
      const auto pass = plan<C>(s, some, theirs, x + part.row * s.d_model, longest, 1, room);
      remembers ? pass.remember(0, 1, alone) : pass(0, 1, alone);
    }
  });
}

}  // namespace

extern "C" int seq2seq_is_here() { return 1; }

// Bytes that the functions below need for n tokens, the longest text or memory `longest`, `group` the
// most tokens of a text or of the beams of one.
extern "C" int64_t seq2seq_room(const Stack* s, int64_t n, int64_t longest, int64_t group, int64_t threads) {
  const int64_t apart = threads * bytes(*s, std::min(n, std::max(PART, group)), longest, 1);
  return std::max(apart, bytes(*s, n, longest, threads));
}

// x [n, d_model], embeddings, become hidden states; before that pages from[i] are copied to to[i].
extern "C" void seq2seq_read(const Stack* s, int64_t n, int64_t n_texts, int64_t width, const int64_t* starts,
                             const int64_t* counts, const int64_t* tables, int64_t beams, int64_t memory_width,
                             const int64_t* lengths, const int64_t* memory_tables, int64_t longest, int64_t threads,
                             int64_t n_copies, const int64_t* from, const int64_t* to, uint8_t* at, float* x) {
  const Texts texts = {n, n_texts, width, starts, counts, tables};
  const Memory memory = {beams, memory_width, lengths, memory_tables};
  const auto work = s->wide_cache ? read<float> : read<uint16_t>;
  work(*s, texts, memory, longest, threads, n_copies, from, to, false, at, x);
}

// A decoder files what it will look at: x [n, d_model], states of an encoder, which stay as they are.
extern "C" void seq2seq_remember(const Stack* s, int64_t n, int64_t n_texts, int64_t width, const int64_t* starts,
                                 const int64_t* counts, const int64_t* tables, int64_t longest, int64_t threads,
                                 uint8_t* at, float* x) {
  const Texts texts = {n, n_texts, width, starts, counts, tables};
  const auto work = s->wide_cache ? read<float> : read<uint16_t>;
  work(*s, texts, {1}, longest, threads, 0, nullptr, nullptr, true, at, x);
}
#else
extern "C" int seq2seq_is_here() { return 0; }
#endif
