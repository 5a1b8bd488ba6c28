// One map of whole numbers on its own: x in fp32 or bf16, rounded on the way in, and the result in the
// same, the exact GELU behind it where that is wanted.

#include "panels.h"

#if PANELS
namespace {

constexpr int64_t SOME = 384;  // rows that a thread's cache holds while its panels pass

template <class T>
void multiply_all(const Map& map, const T* x, int64_t stride, int64_t n, bool with_gelu, int64_t threads,
                  uint8_t* memory, T* out) {
  Room room = {memory};
  const Rows rows = room.rows(n, map.d_in, map.format);
  together(threads, [&](int me, int of, Meeting& meet) {
    run(n, me, of, [&](int64_t i) {
      const T* from = x + i * stride;
      for (int64_t k = 0; k < map.d_in; k += 2 * L) rows.put(i, k, load(from + k), load(from + k + L));
    });
    meet();
    for (int64_t first = 0; first < n; first += SOME)
      run(panels_of(map), me, of, [&](int64_t p) {
        apply(map, p, rows, first, std::min(SOME, n - first), [&](int64_t i, int64_t c, V a, V b) {
          if (with_gelu) a = gelu_of(a), b = gelu_of(b);
          T* to = out + i * map.d_out + c;
          const int64_t left = map.d_out - c;
          if (left >= WIDE) {
            store(to, a), store(to + L, b);
          } else {
            T last[WIDE];
            store(last, a), store(last + L, b);
            std::memcpy(to, last, left * sizeof(T));
          }
        });
      });
  });
}

}  // namespace

extern "C" int panels_is_here() { return 1; }

// Bytes of `memory` below.
extern "C" int64_t panels_room(const Map* map, int64_t n) {
  Room room = {nullptr};
  room.rows(n, map->d_in, map->format);
  return (int64_t)room.at + 64;
}

// x [n, d_in], rows `stride` apart, → out [n, d_out].
extern "C" void panels_fp32(const Map* map, const float* x, int64_t stride, int64_t n, int64_t with_gelu,
                            int64_t threads, uint8_t* memory, float* out) {
  multiply_all(*map, x, stride, n, with_gelu, threads, memory, out);
}
extern "C" void panels_bf16(const Map* map, const bf16* x, int64_t stride, int64_t n, int64_t with_gelu,
                            int64_t threads, uint8_t* memory, bf16* out) {
  multiply_all(*map, x, stride, n, with_gelu, threads, memory, out);
}
#else
extern "C" int panels_is_here() { return 0; }
#endif
