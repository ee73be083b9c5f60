// A float32 product for 16 registers of 8 lanes, in which oneDNN's is slow if the left factor is transposed.
//
// Six rows of the result by two vectors of its columns stay in registers, while the inner numbers run over packed
// factors: six numbers of the left one and two vectors of the right one for each. A strip of the right factor stays in
// the first cache, a block of the left one in the second.

#include "avx2.h"

#include "kernel.h"
#include "packing.h"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)

#include <algorithm>

namespace neonext {
namespace {

static_assert(kLanes == 8);
constexpr int64_t kRows = 6, kColumns = 2 * kLanes;
// Inner numbers whose strip of the right factor fits the first cache, and numbers of the left one that fit the second.
constexpr int64_t kChunk = 512, kHeld = 48 << 10;

// Writes the transpose of kCount <= 8 rows of 8 values.
template <int kCount>
inline void transpose_rows(const float *from, int64_t stride, float *to, int64_t to_stride) {
  Vector values[kLanes] = {};
  for (int i = 0; i < kCount; ++i) {
    values[i] = load(from + i * stride);
  }
  transpose(values);
  for (int i = 0; i < kLanes; ++i) {
    store(to + i * to_stride, values[i]);
  }
}

// Packed factors are groups of kSize rows of the left one, or columns of the right one: for every inner number their
// values, in whole vectors. What lies in these beyond the values is not used.
template <int kSize>
constexpr int64_t kStep = (kSize + kLanes - 1) / kLanes * kLanes;

// Packs a group of `count` values, whose inner numbers follow each other in memory.
template <int kSize>
void pack_across(const float *from, int64_t stride, int64_t count, int64_t inner, float *to) {
  int64_t k = 0;
  for (; count == kSize && k + kLanes <= inner; k += kLanes) {
    transpose_rows<std::min<int>(kSize, kLanes)>(from + k, stride, to + k * kStep<kSize>, kStep<kSize>);
    if (kSize > kLanes) {
      transpose_rows<kLanes>(from + kLanes * stride + k, stride, to + k * kStep<kSize> + kLanes, kStep<kSize>);
    }
  }
  for (; k < inner; ++k) {
    for (int64_t i = 0; i < count; ++i) {
      to[k * kStep<kSize> + i] = from[i * stride + k];
    }
  }
}

// Packs groups of `size` values together, which follow each other in memory. Groups lie `group` apart.
template <int kSize>
void pack_along(const float *from, int64_t stride, int64_t size, int64_t inner, float *to, int64_t group) {
  for (int64_t k = 0; k < inner; ++k, from += stride, to += kStep<kSize>) {
    int64_t i = 0;
    // Whole vectors, if there are as many values, are copied faster than six values.
    for (; i + kStep<kSize> <= size; i += kSize) {
      for (int64_t j = 0; j < kStep<kSize>; j += kLanes) {
        store(to + i / kSize * group + j, load(from + i + j));
      }
    }
    for (; i < size; i += kSize) {
      std::copy(from + i, from + std::min<int64_t>(size, i + kSize), to + i / kSize * group);
    }
  }
}

// Packs `size` rows or columns from `index` on, whose inner numbers begin with k.
template <int kSize>
void pack(const Factor &factor, bool across, int64_t index, int64_t size, int64_t k, int64_t inner, float *to,
          int64_t group) {
  const int64_t stride = factor.stride;
  if (!across) {
    return pack_along<kSize>(factor.values + k * stride + index, stride, size, inner, to, group);
  }
  for (int64_t i = 0; i < size; i += kSize) {
    pack_across<kSize>(factor.values + (index + i) * stride + k, stride, std::min<int64_t>(kSize, size - i), inner,
                       to + i / kSize * group);
  }
}

// Computes kCount rows by kVectors vectors of columns, or adds to them.
template <int kCount, int kVectors>
void multiply(const float *left, const float *right, int64_t inner, float *result, int64_t stride, bool add) {
  Vector sums[kCount][kVectors] = {};
  for (int i = 0; i < kCount; ++i) {
    __builtin_prefetch(result + i * stride, 1);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < inner; ++k) {
    Vector values[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      values[j] = load(right + k * kColumns + j * kLanes);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kCount; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] += left[k * kStep<kRows> + i] * values[j];
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kCount; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float *const to = result + i * stride + j * kLanes;
      store(to, add ? sums[i][j] + load(to) : sums[i][j]);
    }
  }
}

template <int kVectors>
void multiply_rows(int64_t rows, const float *left, const float *right, int64_t inner, float *result, int64_t stride,
                   bool add) {
  switch (rows) {
    case 1: return multiply<1, kVectors>(left, right, inner, result, stride, add);
    case 2: return multiply<2, kVectors>(left, right, inner, result, stride, add);
    case 3: return multiply<3, kVectors>(left, right, inner, result, stride, add);
    case 4: return multiply<4, kVectors>(left, right, inner, result, stride, add);
    case 5: return multiply<5, kVectors>(left, right, inner, result, stride, add);
    default: return multiply<6, kVectors>(left, right, inner, result, stride, add);
  }
}

void multiply_tile(int64_t rows, int64_t columns, const float *left, const float *right, int64_t inner, float *result,
                   int64_t stride, bool add) {
  if (columns == kColumns) {
    return multiply_rows<2>(rows, left, right, inner, result, stride, add);
  }
  float edge[kRows * kColumns];
  columns > kLanes ? multiply_rows<2>(rows, left, right, inner, edge, kColumns, false)
                   : multiply_rows<1>(rows, left, right, inner, edge, kColumns, false);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float &value = result[i * stride + j];
      value = edge[i * kColumns + j] + (add ? value : 0.0f);
    }
  }
}

}  // namespace

bool avx2_suits(int64_t rows, int64_t columns, int64_t inner, const Factor &left) {
  // oneDNN's is a tenth faster on long sums, and as fast on matrices that are small.
  return (left.transposed || inner <= 1024) && std::min(rows, columns) >= 32 && rows * columns * inner >= 1 << 20;
}

void avx2_product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result,
                  int64_t stride, bool add) {
  for (int64_t k = 0; k < inner; k += kChunk) {
    const int64_t count = std::min(kChunk, inner - k), block = kHeld / count / kRows * kRows;
    // A vector between the groups: at a distance of whole pages they would take the same places in the cache.
    const int64_t group = kStep<kRows> * count + kLanes;
    float *const lefts = packed_factor(0, blocks(std::min(block, rows), kRows) * group);
    // Strips that are used by one block of rows only need no place of their own.
    const int64_t strips = rows > block ? blocks(columns, kColumns) : 1;
    float *const rights = packed_factor(1, strips * kColumns * count);
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t end = std::min(rows, first + block);
      pack<kRows>(left, !left.transposed, first, end - first, k, count, lefts, group);
      for (int64_t j = 0; j < columns; j += kColumns) {
        const int64_t width = std::min(kColumns, columns - j);
        float *const strip = rights + (strips > 1 ? j * count : 0);
        if (first == 0) {
          pack<kColumns>(right, right.transposed, j, width, k, count, strip, 0);
        }
        for (int64_t i = first; i < end; i += kRows) {
          multiply_tile(std::min(kRows, end - i), width, lefts + (i - first) / kRows * group, strip, count,
                        result + i * stride + j, stride, add || k > 0);
        }
      }
    }
  }
}

}  // namespace neonext

#else

namespace neonext {

bool avx2_suits(int64_t, int64_t, int64_t, const Factor &) { return false; }

void avx2_product(int64_t, int64_t, int64_t, Factor, Factor, float *, int64_t, bool) {}

}  // namespace neonext

#endif
