// NeoCell, Y = A X B for every channel, and its gradients dX = A' dY B', dA = sum_n dY B' X', dB = sum_n (A X)' dY.
// X is (N, C, H, W), Y is (N, C, H_out, W_out); A and B are block-diagonal and given by their small matrices.
//
// The product of a block-diagonal matrix and a map is a few multiply-adds of whole rows for each block, which run at
// full vector width along the columns. For B the map is transposed, so that B multiplies rows too. Every matrix size,
// every shift and every block that the edge cuts off then takes the same path with full vectors, where dot products of
// 4 or 7 values along a row would not fill one.
//
// One thread takes a channel with all its images: the gradients of the matrices are then sums in a fixed order. It does
// all steps on one map before the next, while the map is in the cache.
//
// C++ derives no geometry. `ops/spec.py` passes it as one table of int32 with six numbers per row: a `Small` for A of
// every channel, a `Small` for B of every channel, then the `Tile`s that they refer to.

#include <algorithm>
#include <vector>

#include "kernel.h"
#include "parallel.h"

namespace neonext {
namespace {

// A small matrix: its offset among all of A or B, its size, and the range of its blocks in the table.
struct Small {
  int32_t offset, inputs, outputs, tile, tiles, unused;
};

// The rows of the map that a block reads and writes, and where its part of the small matrix starts (an edge may cut the
// block off).
struct Tile {
  int32_t input, inputs, matrix_input, output, outputs, matrix_output;
};

struct Tiles {
  const Tile *begin, *end;
};

// The values of a small matrix, and the strides from one output and from one input to the next.
struct Matrix {
  const float *values;
  int64_t by_output, by_input;
};

int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// A map padded with zeros to whole vectors in both directions, so that no loop needs a remainder. It starts at a vector
// boundary.
class Map {
 public:
  Map(int64_t rows, int64_t columns)
      : rows_(padded(rows)), stride_(padded(columns)), storage_(rows_ * stride_ + kLanes, 0.0f) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    values_ = storage_.data() + (sizeof(Vector) - address % sizeof(Vector)) % sizeof(Vector) / sizeof(float);
  }

  float *row(int64_t index) { return values_ + index * stride_; }
  const float *row(int64_t index) const { return values_ + index * stride_; }
  int64_t rows() const { return rows_; }
  int64_t stride() const { return stride_; }
  void clear() { std::fill(values_, values_ + rows_ * stride_, 0.0f); }

 private:
  int64_t rows_, stride_;
  std::vector<float> storage_;
  float *values_;
};

void read(Map &map, const float *from, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(map.row(i), from + i * columns, columns * sizeof(float));
  }
}

void write(const Map &map, float *to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * columns, map.row(i), columns * sizeof(float));
  }
}

// Transposes in tiles of 16 x 16. Interleaving the two halves of 16 rows four times transposes a tile in registers.
void transpose(const Map &from, Map &to) {
  for (int64_t i = 0; i < from.rows(); i += kLanes) {
    for (int64_t j = 0; j < from.stride(); j += kLanes) {
      Vector now[kLanes], next[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        now[k] = load(from.row(i + k) + j);
      }
#pragma GCC unroll 4
      for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
        for (int k = 0; k < kLanes / 2; ++k) {
          next[2 * k] =
              __builtin_shufflevector(now[k], now[k + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
          next[2 * k + 1] =
              __builtin_shufflevector(now[k], now[k + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        std::memcpy(now, next, sizeof(now));
      }
      for (int k = 0; k < kLanes; ++k) {
        store(to.row(j + k) + i, now[k]);
      }
    }
  }
}

// Computes output rows as blocks of the matrix times input rows. Rows that no block writes keep their zeros.
void multiply(Tiles tiles, Matrix matrix, const Map &in, Map &out) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    for (int64_t column = 0; column < in.stride(); column += kLanes) {
      for (int32_t o = 0; o < tile->outputs; ++o) {
        const float *m =
            matrix.values + (tile->matrix_output + o) * matrix.by_output + tile->matrix_input * matrix.by_input;
        Vector sum = {};
        for (int32_t i = 0; i < tile->inputs; ++i, m += matrix.by_input) {
          sum += *m * load(in.row(tile->input + i) + column);
        }
        store(out.row(tile->output + o) + column, sum);
      }
    }
  }
}

// Computes input rows as blocks of the transposed matrix times output rows.
void multiply_transposed(Tiles tiles, Matrix matrix, const Map &out, Map &in) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    for (int64_t column = 0; column < in.stride(); column += kLanes) {
      for (int32_t i = 0; i < tile->inputs; ++i) {
        const float *m =
            matrix.values + tile->matrix_output * matrix.by_output + (tile->matrix_input + i) * matrix.by_input;
        Vector sum = {};
        for (int32_t o = 0; o < tile->outputs; ++o, m += matrix.by_output) {
          sum += *m * load(out.row(tile->output + o) + column);
        }
        store(in.row(tile->input + i) + column, sum);
      }
    }
  }
}

// Adds to sums[matrix element] the products of the output row's gradient with the input row. The sums keep their lanes,
// which are added only once, after all images.
void correlate(Tiles tiles, Matrix matrix, const Map &out, const Map &in, Vector *sums) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    for (int32_t o = 0; o < tile->outputs; ++o) {
      Vector *sum = sums + (tile->matrix_output + o) * matrix.by_output + tile->matrix_input * matrix.by_input;
      for (int32_t i = 0; i < tile->inputs; ++i, sum += matrix.by_input) {
        Vector products = *sum;
        const float *const left = out.row(tile->output + o), *const right = in.row(tile->input + i);
        for (int64_t column = 0; column < in.stride(); column += kLanes) {
          products += load(left + column) * load(right + column);
        }
        *sum = products;
      }
    }
  }
}

struct Side {
  const Small *small;
  Tiles tiles;
  Matrix matrix;
};

class Geometry {
 public:
  Geometry(const void *table, int64_t channels)
      : small_(static_cast<const Small *>(table)), tiles_(static_cast<const Tile *>(table)), channels_(channels) {}

  // A is stored (outputs, inputs).
  Side a(const float *values, int64_t channel) const {
    const Small &small = small_[channel];
    return {&small, tiles(small), {values + small.offset, small.inputs, 1}};
  }

  // B is stored (inputs, outputs).
  Side b(const float *values, int64_t channel) const {
    const Small &small = small_[channels_ + channel];
    return {&small, tiles(small), {values + small.offset, 1, small.outputs}};
  }

 private:
  Tiles tiles(const Small &small) const { return {tiles_ + small.tile, tiles_ + small.tile + small.tiles}; }

  const Small *small_;
  const Tile *tiles_;
  int64_t channels_;
};

std::vector<Vector> zero_sums(const Small &small) {
  return std::vector<Vector>(small.inputs * small.outputs, Vector{});
}

void write_sums(const std::vector<Vector> &sums, float *to) {
  for (size_t i = 0; i < sums.size(); ++i) {
    to[i] = static_cast<float>(total(sums[i]));
  }
}

// Channels per task. The buffers of a task serve all of them, and enough tasks remain for all threads.
constexpr int64_t kChannels = 4;

}  // namespace
}  // namespace neonext

// x (N, C, H, W), A and B of all groups one after the other, table, a tensor of shape (H_out, W_out)
// -> y (N, C, H_out, W_out)
NEONEXT_KERNEL(neo_cell) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1], height = shapes[0][2], width = shapes[0][3];
  const int64_t out_height = shapes[4][0], out_width = shapes[4][1];
  const float *const x = static_cast<const float *>(data[0]);
  const float *const matrices_a = static_cast<const float *>(data[1]);
  const float *const matrices_b = static_cast<const float *>(data[2]);
  const Geometry geometry(data[3], channels);
  float *const y = static_cast<float *>(data[5]);
  parallel((channels + kChannels - 1) / kChannels, [=](int64_t block) {
    Map in(height, width), half(out_height, width), turned(width, out_height), back(out_width, out_height),
        out(out_height, out_width);
    for (int64_t c = block * kChannels; c < std::min(channels, (block + 1) * kChannels); ++c) {
      const Side a = geometry.a(matrices_a, c), b = geometry.b(matrices_b, c);
      half.clear();
      back.clear();
      for (int64_t n = 0; n < images; ++n) {
        read(in, x + (n * channels + c) * height * width, height, width);
        multiply(a.tiles, a.matrix, in, half);
        transpose(half, turned);
        multiply(b.tiles, b.matrix, turned, back);
        transpose(back, out);
        write(out, y + (n * channels + c) * out_height * out_width, out_height, out_width);
      }
    }
  });
  return 0;
}

NEONEXT_SHAPE(neo_cell) { return {shapes[0][0], shapes[0][1], shapes[4][0], shapes[4][1]}; }

// x (N, C, H, W), dy (N, C, H_out, W_out), A and B of all groups, table -> dx, dA, dB
NEONEXT_KERNEL(neo_cell_grad) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1], height = shapes[0][2], width = shapes[0][3];
  const int64_t out_height = shapes[1][2], out_width = shapes[1][3];
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  const float *const matrices_a = static_cast<const float *>(data[2]);
  const float *const matrices_b = static_cast<const float *>(data[3]);
  const Geometry geometry(data[4], channels);
  float *const dx = static_cast<float *>(data[5]);
  float *const da = static_cast<float *>(data[6]);
  float *const db = static_cast<float *>(data[7]);
  parallel((channels + kChannels - 1) / kChannels, [=](int64_t block) {
    Map in(height, width), half(out_height, width), turned(width, out_height), up(out_height, out_width),
        up_turned(out_width, out_height), half_up_turned(width, out_height), half_up(out_height, width),
        down(height, width);
    for (int64_t c = block * kChannels; c < std::min(channels, (block + 1) * kChannels); ++c) {
      const Side a = geometry.a(matrices_a, c), b = geometry.b(matrices_b, c);
      std::vector<Vector> sums_a = zero_sums(*a.small), sums_b = zero_sums(*b.small);
      half.clear();
      half_up_turned.clear();
      down.clear();
      for (int64_t n = 0; n < images; ++n) {
        read(in, x + (n * channels + c) * height * width, height, width);
        multiply(a.tiles, a.matrix, in, half);
        transpose(half, turned);
        read(up, dy + (n * channels + c) * out_height * out_width, out_height, out_width);
        transpose(up, up_turned);
        correlate(b.tiles, b.matrix, up_turned, turned, sums_b.data());
        multiply_transposed(b.tiles, b.matrix, up_turned, half_up_turned);
        transpose(half_up_turned, half_up);
        correlate(a.tiles, a.matrix, half_up, in, sums_a.data());
        multiply_transposed(a.tiles, a.matrix, half_up, down);
        write(down, dx + (n * channels + c) * height * width, height, width);
      }
      write_sums(sums_a, da + a.small->offset);
      write_sums(sums_b, db + b.small->offset);
    }
  });
  return 0;
}

NEONEXT_SHAPES(neo_cell_grad, 3) { return {shape(0), shape(2), shape(3)}; }
