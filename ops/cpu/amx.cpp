// A float32 product by AMX, whose tiles multiply bfloat16 and add in float32.
//
// A float32 is the sum of three bfloat16, x = x0 + x1 + x2 with 8 bits of the 24 each, exactly. Of the nine products of
// two such sums the six largest are computed: x0 y0, x0 y1, x1 y0, x1 y1, x0 y2 and x2 y0. The other three are below
// 2^-24 of the product, the rounding error of float32. With the packing of the factors, this takes two thirds of the
// time of oneDNN's product, which computes float32 with AVX-512.

#include "amx.h"

#include "kernel.h"
#include "packing.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace neonext {
namespace {

// A tile has 16 rows of 64 bytes: 16 float32, or 16 pairs of bfloat16.
constexpr int64_t kRows = 16, kPairs = 16, kInner = 2 * kPairs, kTile = kRows * kPairs, kParts = 3;
// Rows and columns of the result that are computed together, and inner numbers whose packed factors fit the cache.
constexpr int64_t kBlock = 2 * kRows;
constexpr int64_t kChunk = 128;

bool request() {
  // Linux asks a process to request the registers (arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

Bits bits_of(const Vector &value) {
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

Vector vector_of(const Bits &bits) {
  Vector value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Splits a value into three parts, whose low 16 bits are zero.
inline void split(Vector value, Bits *parts) {
  for (int part = 0; part < kParts; ++part) {
    // Rounded, except for the last one, which is exact and keeps a NaN.
    parts[part] = (bits_of(value) + (part + 1 < kParts ? 0x8000u : 0u)) & 0xFFFF0000u;
    value -= vector_of(parts[part]);
  }
}

// Loads 16 values, of which `count` exist, or zeros for the rest.
template <bool kWhole>
inline Vector load_some(const float *from, int64_t count) {
  if (kWhole || count >= kLanes) {
    return load(from);
  }
  Vector value = {};
  if (count > 0) {
    std::memcpy(&value, from, count * sizeof(float));
  }
  return value;
}

// Writes one tile for each part: row k has the pairs of 16 neighbours in two stored rows, 2 k and 2 k + 1.
template <bool kWhole>
inline void pack_between_rows(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
  for (int k = 0; k < kPairs; ++k) {
    Bits low[kParts], high[kParts];
    split(load_some<kWhole>(from + 2 * k * stride, 2 * k < rows ? columns : 0), low);
    split(load_some<kWhole>(from + (2 * k + 1) * stride, 2 * k + 1 < rows ? columns : 0), high);
    for (int part = 0; part < kParts; ++part) {
      store(to + part * kTile + k * kLanes, vector_of((low[part] >> 16) | high[part]));
    }
  }
}

// Writes one tile for each part: row k has the pairs of 32 neighbours in stored row k.
template <bool kWhole>
inline void pack_within_rows(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
  // The upper halves of 32 numbers, in their order.
  using Halves = uint16_t __attribute__((vector_size(sizeof(Vector))));
  for (int k = 0; k < kRows; ++k) {
    Bits first[kParts], second[kParts];
    split(load_some<kWhole>(from + k * stride, k < rows ? columns : 0), first);
    split(load_some<kWhole>(from + k * stride + kLanes, k < rows ? columns - kLanes : 0), second);
    for (int part = 0; part < kParts; ++part) {
      const Halves a = (Halves)first[part], b = (Halves)second[part];
      const Halves both = NEONEXT_SHUFFLE(Halves, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                                          35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
      std::memcpy(to + part * kTile + k * kLanes, &both, sizeof(both));
    }
  }
}

inline void transpose_tile(float *tile) {
  Vector rows[kRows];
  std::memcpy(rows, tile, sizeof(rows));
  transpose(rows);
  std::memcpy(tile, rows, sizeof(rows));
}

// Packs a matrix: for every 16 of its rows (of its columns, if `right`) and every 32 inner numbers a tile of each part.
void pack(const Factor &factor, bool right, int64_t size, int64_t inner, float *packed) {
  // Whether the inner numbers follow each other in memory.
  const bool within = factor.transposed == right;
  const int64_t steps = (inner + kInner - 1) / kInner;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < size; i += kRows) {
      const int64_t k = step * kInner, stride = factor.stride;
      float *const to = packed + (i / kRows * steps + step) * kParts * kTile;
      const bool whole = i + kRows <= size && k + kInner <= inner;
      if (within) {
        const float *const from = factor.values + i * stride + k;
        whole ? pack_within_rows<true>(from, stride, kRows, kInner, to)
              : pack_within_rows<false>(from, stride, size - i, inner - k, to);
      } else {
        const float *const from = factor.values + k * stride + i;
        whole ? pack_between_rows<true>(from, stride, kInner, kRows, to)
              : pack_between_rows<false>(from, stride, inner - k, size - i, to);
      }
      if (within == right) {
        for (int part = 0; part < kParts; ++part) {
          transpose_tile(to + part * kTile);
        }
      }
    }
  }
}

// Computes 32 x 32 values in tiles 0 to 3. `left` and `right` are packed, the second 16 rows and columns behind the
// first.
inline void multiply(const float *left, const float *right, int64_t steps) {
  constexpr int kStride = 64;
  const float *const left_2 = left + steps * kParts * kTile, *const right_2 = right + steps * kParts * kTile;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step * kParts * kTile;
#define NEONEXT_LEFT(part)                           \
  _tile_loadd(4, left + at + part * kTile, kStride); \
  _tile_dpbf16ps(0, 4, 6);                           \
  _tile_dpbf16ps(1, 4, 7);                           \
  _tile_loadd(5, left_2 + at + part * kTile, kStride); \
  _tile_dpbf16ps(2, 5, 6);                           \
  _tile_dpbf16ps(3, 5, 7)
#define NEONEXT_RIGHT(part)                           \
  _tile_loadd(6, right + at + part * kTile, kStride); \
  _tile_dpbf16ps(0, 4, 6);                            \
  _tile_dpbf16ps(2, 5, 6);                            \
  _tile_loadd(7, right_2 + at + part * kTile, kStride); \
  _tile_dpbf16ps(1, 4, 7);                            \
  _tile_dpbf16ps(3, 5, 7)
    // In an order in which each product replaces one side only.
    _tile_loadd(6, right + at, kStride);
    _tile_loadd(7, right_2 + at, kStride);
    NEONEXT_LEFT(2);
    NEONEXT_LEFT(1);
    NEONEXT_RIGHT(1);
    NEONEXT_LEFT(0);
    NEONEXT_RIGHT(2);
    NEONEXT_RIGHT(0);
#undef NEONEXT_LEFT
#undef NEONEXT_RIGHT
  }
}

// Computes a block of the result, or adds to it.
void multiply_block(const float *left, const float *right, int64_t steps, int64_t rows, int64_t columns, float *result,
                    int64_t stride, bool add) {
  alignas(64) float edge[kBlock * kBlock];
  const bool whole = rows == kBlock && columns == kBlock;
  float *const to = whole ? result : edge;
  const int64_t step = whole ? stride : kBlock, bytes = step * sizeof(float);
  if (add && whole) {
    _tile_loadd(0, to, bytes);
    _tile_loadd(1, to + kRows, bytes);
    _tile_loadd(2, to + kRows * step, bytes);
    _tile_loadd(3, to + kRows * step + kRows, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  multiply(left, right, steps);
  _tile_stored(0, to, bytes);
  _tile_stored(1, to + kRows, bytes);
  _tile_stored(2, to + kRows * step, bytes);
  _tile_stored(3, to + kRows * step + kRows, bytes);
  if (whole) {
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float &value = result[i * stride + j];
      value = edge[i * kBlock + j] + (add ? value : 0.0f);
    }
  }
}

// Returns a factor without its first k inner numbers.
Factor behind(const Factor &factor, bool stored_rows, int64_t k) {
  return {factor.values + (stored_rows ? k * factor.stride : k), factor.stride, factor.transposed};
}

}  // namespace

bool amx_suits(int64_t rows, int64_t columns, int64_t inner) {
  static const bool works = request();
  return works && std::min(rows, columns) >= 64 && inner >= kInner && rows * columns * inner >= 1 << 19;
}

void amx_product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result, int64_t stride,
                 bool add) {
  const Configuration configuration;
  _tile_loadconfig(&configuration);
  for (int64_t k = 0; k < inner; k += kChunk) {
    const int64_t count = std::min(kChunk, inner - k), steps = blocks(count, kInner), size = steps * kParts * kTile;
    // An even number of tiles; what lies beyond the matrix is computed, but not used.
    float *const lefts = packed_factor(0, 2 * blocks(rows, kBlock) * size);
    float *const rights = packed_factor(1, 2 * blocks(columns, kBlock) * size);
    pack(behind(left, left.transposed, k), false, rows, count, lefts);
    pack(behind(right, !right.transposed, k), true, columns, count, rights);
    for (int64_t i = 0; i < rows; i += kBlock) {
      for (int64_t j = 0; j < columns; j += kBlock) {
        multiply_block(lefts + i / kRows * size, rights + j / kRows * size, steps, std::min(kBlock, rows - i),
                       std::min(kBlock, columns - j), result + i * stride + j, stride, add || k > 0);
      }
    }
  }
  _tile_release();
}

}  // namespace neonext

#else

namespace neonext {

bool amx_suits(int64_t, int64_t, int64_t) { return false; }

void amx_product(int64_t, int64_t, int64_t, Factor, Factor, float *, int64_t, bool) {}

}  // namespace neonext

#endif
