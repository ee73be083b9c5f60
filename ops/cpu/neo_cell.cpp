// NeoCell, Y = A X B for every channel, and its gradients dX = A' dY B', dA = sum_n dY B' X', dB = sum_n (A X)' dY.
// X is (N, C, H, W), Y is (N, C, H_out, W_out); A and B are block-diagonal and given by their small matrices.
//
// The product of a block-diagonal matrix and a map is a few multiply-adds of whole rows for each block, and for B of
// whole columns. The vectors lie along the columns of an image (`ByImage`) or across images (`ByLanes`). Every matrix
// size, every shift and every block that the edge cuts off then takes the same path with full vectors, where dot
// products of 4 or 7 values along a row would not fill one.
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
#include "sums.h"

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

int64_t padded(int64_t size) { return blocks(size, kLanes) * kLanes; }

// Zeros that start at a vector boundary.
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size), storage_(size + kLanes, 0.0f) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    values_ = storage_.data() + (sizeof(Vector) - address % sizeof(Vector)) % sizeof(Vector) / sizeof(float);
  }

  float *values() { return values_; }
  void clear() { std::fill(values_, values_ + size_, 0.0f); }

 private:
  int64_t size_;
  std::vector<float> storage_;
  float *values_;
};

// What a matrix multiplies: rows of `steps` vectors, which need not follow each other in memory.
struct Rows {
  float *values;
  int64_t stride, step, steps;

  float *at(int64_t row, int64_t index) const { return values + row * stride + index * step; }
};

template <int kSteps>
inline void multiply_steps(const Tile &tile, const Matrix &matrix, const Rows &in, const Rows &out, int64_t index) {
  for (int32_t o = 0; o < tile.outputs; ++o) {
    const float *m = matrix.values + (tile.matrix_output + o) * matrix.by_output + tile.matrix_input * matrix.by_input;
    Vector sums[kSteps] = {};
    for (int32_t i = 0; i < tile.inputs; ++i, m += matrix.by_input) {
      for (int k = 0; k < kSteps; ++k) {
        sums[k] += *m * load(in.at(tile.input + i, index + k));
      }
    }
    for (int k = 0; k < kSteps; ++k) {
      store(out.at(tile.output + o, index + k), sums[k]);
    }
  }
}

// Computes output rows as blocks of the matrix times input rows. Rows that no block writes keep their zeros.
void multiply(Tiles tiles, Matrix matrix, const Rows &in, const Rows &out) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    int64_t index = 0;
    for (; index + 8 <= in.steps; index += 8) {
      multiply_steps<8>(*tile, matrix, in, out, index);
    }
    for (; index + 4 <= in.steps; index += 4) {
      multiply_steps<4>(*tile, matrix, in, out, index);
    }
    for (; index < in.steps; ++index) {
      multiply_steps<1>(*tile, matrix, in, out, index);
    }
  }
}

// Computes input rows as blocks of the transposed matrix times output rows.
void multiply_transposed(Tiles tiles, Matrix matrix, const Rows &out, const Rows &in) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    const Tile swapped = {tile->output, tile->outputs, tile->matrix_output,
                          tile->input,  tile->inputs,  tile->matrix_input};
    multiply({&swapped, &swapped + 1}, {matrix.values, matrix.by_input, matrix.by_output}, out, in);
  }
}

template <int kInputs>
inline void correlate_inputs(const Rows &out, int64_t o, const Rows &in, int64_t i, Vector *sums, int64_t stride) {
  Vector products[kInputs];
  for (int k = 0; k < kInputs; ++k) {
    products[k] = sums[k * stride];
  }
  for (int64_t index = 0; index < in.steps; ++index) {
    const Vector left = load(out.at(o, index));
    for (int k = 0; k < kInputs; ++k) {
      products[k] += left * load(in.at(i + k, index));
    }
  }
  for (int k = 0; k < kInputs; ++k) {
    sums[k * stride] = products[k];
  }
}

// Adds to sums[matrix element] the products of the output row's gradient with the input row. The sums keep their lanes,
// which are added only once, after all images.
void correlate(Tiles tiles, Matrix matrix, const Rows &out, const Rows &in, Vector *sums) {
  for (const Tile *tile = tiles.begin; tile != tiles.end; ++tile) {
    for (int32_t o = 0; o < tile->outputs; ++o) {
      Vector *sum = sums + (tile->matrix_output + o) * matrix.by_output + tile->matrix_input * matrix.by_input;
      int32_t i = 0;
      for (; i + 4 <= tile->inputs; i += 4, sum += 4 * matrix.by_input) {
        correlate_inputs<4>(out, tile->output + o, in, tile->input + i, sum, matrix.by_input);
      }
      for (; i < tile->inputs; ++i, sum += matrix.by_input) {
        correlate_inputs<1>(out, tile->output + o, in, tile->input + i, sum, matrix.by_input);
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

void write_sums(const std::vector<Vector> &sums, float *to) {
  for (size_t i = 0; i < sums.size(); ++i) {
    to[i] = static_cast<float>(total(sums[i]));
  }
}

// The sizes of a map before and after NeoCell.
struct Sizes {
  int64_t height, width, out_height, out_width;

  int64_t area() const { return height * width; }
  int64_t out_area() const { return out_height * out_width; }
};

// The maps of one channel: image n is at values + n * stride.
template <typename Float>
struct Maps {
  Float *values;
  int64_t stride;
};
using Input = Maps<const float>;
using Output = Maps<float>;

// One image at a time: the vectors lie along the columns, and the map is transposed for B. Maps are padded with zeros
// to whole vectors in both directions, so that no loop needs a remainder.
class ByImage {
 public:
  static constexpr int64_t kImages = 1;

  static int64_t buffer(int64_t height, int64_t width) { return padded(height) * padded(width); }

  static void read(const Input &maps, int64_t first, int64_t, int64_t height, int64_t width, float *to) {
    for (int64_t i = 0; i < height; ++i) {
      std::memcpy(to + i * padded(width), maps.values + first * maps.stride + i * width, width * sizeof(float));
    }
  }

  static void write(const float *from, const Output &maps, int64_t first, int64_t, int64_t height, int64_t width,
                    const float *added) {
    for (int64_t i = 0; i < height; ++i) {
      float *const to = maps.values + first * maps.stride + i * width;
      const float *const row = from + i * padded(width);
      if (added == nullptr) {
        std::memcpy(to, row, width * sizeof(float));
        continue;
      }
      const float *const more = added + first * maps.stride + i * width;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) {
        to[j] = row[j] + more[j];
      }
    }
  }

  static Rows rows(float *map, int64_t, int64_t width) { return {map, padded(width), kLanes, padded(width) / kLanes}; }

  // Returns the columns of a map as rows, in `turned`.
  static Rows columns(float *map, int64_t height, int64_t width, float *turned) {
    turn(map, padded(height), padded(width), turned);
    return rows(turned, width, height);
  }

  // Moves what was written to `columns` back into the map.
  static void restore(float *turned, int64_t height, int64_t width, float *map) {
    turn(turned, padded(width), padded(height), map);
  }

  // Returns where the columns of a map are to be written.
  static Rows blank_columns(float *, int64_t height, int64_t width, float *turned) {
    return rows(turned, width, height);
  }

 private:
  static void turn(const float *from, int64_t rows, int64_t columns, float *to) {
    for (int64_t i = 0; i < rows; i += kLanes) {
      for (int64_t j = 0; j < columns; j += kLanes) {
        Vector tile[kLanes];
        for (int k = 0; k < kLanes; ++k) {
          tile[k] = load(from + (i + k) * columns + j);
        }
        transpose(tile);
        for (int k = 0; k < kLanes; ++k) {
          store(to + (j + k) * rows + i, tile[k]);
        }
      }
    }
  }
};

// 16 images at a time, one in each lane. Nothing is padded and nothing transposed for B, but a batch of fewer images
// leaves lanes empty.
class ByLanes {
 public:
  static constexpr int64_t kImages = kLanes;

  static int64_t buffer(int64_t height, int64_t width) { return height * width * kLanes; }

  static void read(const Input &maps, int64_t first, int64_t images, int64_t height, int64_t width, float *to) {
    const int64_t area = height * width;
    for (int64_t j = 0; j < area; j += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, area - j);
      Vector tile[kLanes] = {};
      for (int64_t k = 0; k < images; ++k) {
        const float *const from = maps.values + (first + k) * maps.stride + j;
        if (count == kLanes) {
          tile[k] = load(from);
        } else {
          std::memcpy(&tile[k], from, count * sizeof(float));
        }
      }
      transpose(tile);
      std::memcpy(to + j * kLanes, tile, count * sizeof(Vector));
    }
  }

  static void write(const float *from, const Output &maps, int64_t first, int64_t images, int64_t height,
                    int64_t width, const float *added) {
    const int64_t area = height * width;
    for (int64_t j = 0; j < area; j += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, area - j);
      Vector tile[kLanes] = {};
      std::memcpy(tile, from + j * kLanes, count * sizeof(Vector));
      transpose(tile);
      for (int64_t k = 0; k < images; ++k) {
        const int64_t at = (first + k) * maps.stride + j;
        if (count == kLanes) {
          store(maps.values + at, added == nullptr ? tile[k] : tile[k] + load(added + at));
          continue;
        }
        for (int64_t i = 0; i < count; ++i) {
          maps.values[at + i] = added == nullptr ? tile[k][i] : tile[k][i] + added[at + i];
        }
      }
    }
  }

  static Rows rows(float *map, int64_t, int64_t width) { return {map, width * kLanes, kLanes, width}; }
  static Rows columns(float *map, int64_t height, int64_t width, float *) {
    return {map, kLanes, width * kLanes, height};
  }
  static Rows blank_columns(float *map, int64_t height, int64_t width, float *turned) {
    return columns(map, height, width, turned);
  }
  static void restore(float *, int64_t, int64_t, float *) {}
};

// NeoCell and its gradients for the channels of one task; the buffers serve all of them.
template <typename Way>
class Channel {
 public:
  explicit Channel(const Sizes &sizes)
      : sizes_(sizes),
        in_(Way::buffer(sizes.height, sizes.width)),
        half_(Way::buffer(sizes.out_height, sizes.width)),
        half_turned_(Way::buffer(sizes.width, sizes.out_height)),
        half_up_(Way::buffer(sizes.out_height, sizes.width)),
        half_up_turned_(Way::buffer(sizes.width, sizes.out_height)),
        out_(Way::buffer(sizes.out_height, sizes.out_width)),
        out_turned_(Way::buffer(sizes.out_width, sizes.out_height)) {}

  void forward(const Side &a, const Side &b, int64_t images, const Input &x, const Output &y) {
    const int64_t height = sizes_.height, width = sizes_.width, out_height = sizes_.out_height,
                  out_width = sizes_.out_width;
    half_.clear();
    out_.clear();
    out_turned_.clear();
    for (int64_t n = 0; n < images; n += Way::kImages) {
      const int64_t together = std::min(Way::kImages, images - n);
      Way::read(x, n, together, height, width, in_.values());
      multiply(a.tiles, a.matrix, Way::rows(in_.values(), height, width),
               Way::rows(half_.values(), out_height, width));
      multiply(b.tiles, b.matrix, Way::columns(half_.values(), out_height, width, half_turned_.values()),
               Way::blank_columns(out_.values(), out_height, out_width, out_turned_.values()));
      Way::restore(out_turned_.values(), out_height, out_width, out_.values());
      Way::write(out_.values(), y, n, together, out_height, out_width, nullptr);
    }
  }

  // Writes the gradients; `added`, with the layout of dx, is added to dx if it is given.
  void backward(const Side &a, const Side &b, int64_t images, const Input &x, const Input &dy, const Output &dx,
                const float *added, float *da, float *db) {
    const int64_t height = sizes_.height, width = sizes_.width, out_height = sizes_.out_height,
                  out_width = sizes_.out_width;
    std::vector<Vector> sums_a(a.small->inputs * a.small->outputs), sums_b(b.small->inputs * b.small->outputs);
    half_.clear();
    half_up_.clear();
    half_up_turned_.clear();
    const Rows in = Way::rows(in_.values(), height, width), half = Way::rows(half_.values(), out_height, width),
               half_up = Way::rows(half_up_.values(), out_height, width);
    for (int64_t n = 0; n < images; n += Way::kImages) {
      const int64_t together = std::min(Way::kImages, images - n);
      Way::read(x, n, together, height, width, in_.values());
      Way::read(dy, n, together, out_height, out_width, out_.values());
      multiply(a.tiles, a.matrix, in, half);
      const Rows up = Way::columns(out_.values(), out_height, out_width, out_turned_.values());
      correlate(b.tiles, b.matrix, up, Way::columns(half_.values(), out_height, width, half_turned_.values()),
                sums_b.data());
      multiply_transposed(b.tiles, b.matrix, up,
                          Way::blank_columns(half_up_.values(), out_height, width, half_up_turned_.values()));
      Way::restore(half_up_turned_.values(), out_height, width, half_up_.values());
      correlate(a.tiles, a.matrix, half_up, in, sums_a.data());
      // The map itself is not needed any more. Rows that no block writes are zeros.
      in_.clear();
      multiply_transposed(a.tiles, a.matrix, half_up, in);
      Way::write(in_.values(), dx, n, together, height, width, added);
    }
    write_sums(sums_a, da + a.small->offset);
    write_sums(sums_b, db + b.small->offset);
  }

 private:
  Sizes sizes_;
  Buffer in_, half_, half_turned_, half_up_, half_up_turned_, out_, out_turned_;
};

// Calls body(channels of a task, first, last) for all channels, on several threads, the way that suits the batch.
template <typename Body>
void for_channels(const Sizes &sizes, int64_t images, int64_t channels, const Body &body) {
  // Enough tasks remain for all threads.
  constexpr int64_t kChannels = 4;
  parallel(blocks(channels, kChannels), [=](int64_t block) {
    const int64_t first = block * kChannels, last = std::min(channels, first + kChannels);
    if (images < kLanes) {
      body(Channel<ByImage>(sizes), first, last);
    } else {
      body(Channel<ByLanes>(sizes), first, last);
    }
  });
}

// One buffer that each thread keeps from call to call.
float *scratch(int64_t size) {
  static thread_local std::vector<float> buffer;
  if (static_cast<int64_t>(buffer.size()) < size) {
    buffer.resize(size);
  }
  return buffer.data();
}

}  // namespace
}  // namespace neonext

// x (N, C, H, W), A and B of all groups one after the other, table, a tensor of shape (H_out, W_out)
// -> y (N, C, H_out, W_out)
NEONEXT_KERNEL(neo_cell) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1];
  const Sizes sizes = {shapes[0][2], shapes[0][3], shapes[4][0], shapes[4][1]};
  const float *const x = static_cast<const float *>(data[0]);
  const float *const matrices_a = static_cast<const float *>(data[1]);
  const float *const matrices_b = static_cast<const float *>(data[2]);
  const Geometry geometry(data[3], channels);
  float *const y = static_cast<float *>(data[5]);
  for_channels(sizes, images, channels, [=](auto work, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      work.forward(geometry.a(matrices_a, c), geometry.b(matrices_b, c), images,
                   {x + c * sizes.area(), channels * sizes.area()},
                   {y + c * sizes.out_area(), channels * sizes.out_area()});
    }
  });
  return 0;
}

NEONEXT_SHAPE(neo_cell) { return {shapes[0][0], shapes[0][1], shapes[4][0], shapes[4][1]}; }

// x (N, C, H, W), dy (N, C, H_out, W_out), A and B of all groups, table -> dx, dA, dB
NEONEXT_KERNEL(neo_cell_grad) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1];
  const Sizes sizes = {shapes[0][2], shapes[0][3], shapes[1][2], shapes[1][3]};
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  const float *const matrices_a = static_cast<const float *>(data[2]);
  const float *const matrices_b = static_cast<const float *>(data[3]);
  const Geometry geometry(data[4], channels);
  float *const dx = static_cast<float *>(data[5]);
  float *const da = static_cast<float *>(data[6]);
  float *const db = static_cast<float *>(data[7]);
  for_channels(sizes, images, channels, [=](auto work, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      work.backward(geometry.a(matrices_a, c), geometry.b(matrices_b, c), images,
                    {x + c * sizes.area(), channels * sizes.area()},
                    {dy + c * sizes.out_area(), channels * sizes.out_area()},
                    {dx + c * sizes.area(), channels * sizes.area()}, nullptr, da, db);
    }
  });
  return 0;
}

NEONEXT_SHAPES(neo_cell_grad, 3) { return {shape(0), shape(2), shape(3)}; }

// The normalization of BatchNorm in training behind NeoCell, with m and v the mean and variance of a channel of z,
// NeoCell's output, over N, H and W:
//
//     y = r (z - m),   r = 1 / sqrt(v + epsilon),   dz = r (dy - mean(dy) - y mean(dy y))
//
// Gamma and beta belong to what follows. One thread has a channel with all its images, so the statistics cost no
// passes over the memory.
//
// x, A, B, table, a tensor of shape (H_out, W_out), moving mean (C), moving variance (C), epsilon and the kept share of
// the moving statistics (2) -> y, r (C), next moving mean (C), next moving variance (C)
NEONEXT_KERNEL(neo_norm) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1];
  const Sizes sizes = {shapes[0][2], shapes[0][3], shapes[4][0], shapes[4][1]};
  const float *const x = static_cast<const float *>(data[0]);
  const float *const matrices_a = static_cast<const float *>(data[1]);
  const float *const matrices_b = static_cast<const float *>(data[2]);
  const Geometry geometry(data[3], channels);
  const float *const moving_mean = static_cast<const float *>(data[5]);
  const float *const moving_variance = static_cast<const float *>(data[6]);
  const double epsilon = static_cast<const float *>(data[7])[0], keep = static_cast<const float *>(data[7])[1];
  float *const y = static_cast<float *>(data[8]);
  float *const inverses = static_cast<float *>(data[9]);
  float *const next_mean = static_cast<float *>(data[10]);
  float *const next_variance = static_cast<float *>(data[11]);
  for_channels(sizes, images, channels, [=](auto work, int64_t first, int64_t last) {
    const int64_t area = sizes.out_area(), size = images * area;
    float *const z = scratch(size);
    for (int64_t c = first; c < last; ++c) {
      work.forward(geometry.a(matrices_a, c), geometry.b(matrices_b, c), images,
                   {x + c * sizes.area(), channels * sizes.area()}, {z, area});
      const double exact = accumulate(size, [=](int64_t i, float &sum, float &) { sum += z[i]; }).first / size;
      // A second pass around the mean: the mean of squares minus the squared mean would cancel.
      const float mean = static_cast<float>(exact);
      const double squares = accumulate(size, [=](int64_t i, float &sum, float &) {
                               sum += (z[i] - mean) * (z[i] - mean);
                             }).first;
      // `rest` is the rounding error of the float32 mean. The corrections for it are exact.
      const double rest = exact - mean, variance = squares / size - rest * rest;
      const double inverse = inverse_deviation(variance, epsilon);
      const float scale = static_cast<float>(inverse), shift = static_cast<float>(rest * inverse);
      for (int64_t n = 0; n < images; ++n) {
        const float *const from = z + n * area;
        float *const to = y + (n * channels + c) * area;
#pragma GCC ivdep
        for (int64_t i = 0; i < area; ++i) {
          to[i] = (from[i] - mean) * scale - shift;
        }
      }
      inverses[c] = scale;
      // As in PyTorch, the moving statistics take the unbiased variance.
      const double unbiased = variance * size / std::max<int64_t>(1, size - 1);
      next_mean[c] = static_cast<float>(keep * moving_mean[c] + (1 - keep) * exact);
      next_variance[c] = static_cast<float>(keep * moving_variance[c] + (1 - keep) * unbiased);
    }
  });
  return 0;
}

NEONEXT_SHAPES(neo_norm, 4) {
  return {{shapes[0][0], shapes[0][1], shapes[4][0], shapes[4][1]}, shape(5), shape(5), shape(5)};
}

// x, dy, y, r (C), a tensor of the shape of x, A, B, table -> dx plus that tensor, dA, dB
NEONEXT_KERNEL(neo_norm_grad) {
  using namespace neonext;
  const int64_t images = shapes[0][0], channels = shapes[0][1];
  const Sizes sizes = {shapes[0][2], shapes[0][3], shapes[1][2], shapes[1][3]};
  const float *const x = static_cast<const float *>(data[0]);
  const float *const dy = static_cast<const float *>(data[1]);
  const float *const y = static_cast<const float *>(data[2]);
  const float *const inverses = static_cast<const float *>(data[3]);
  const float *const added = static_cast<const float *>(data[4]);
  const float *const matrices_a = static_cast<const float *>(data[5]);
  const float *const matrices_b = static_cast<const float *>(data[6]);
  const Geometry geometry(data[7], channels);
  float *const dx = static_cast<float *>(data[8]);
  float *const da = static_cast<float *>(data[9]);
  float *const db = static_cast<float *>(data[10]);
  for_channels(sizes, images, channels, [=](auto work, int64_t first, int64_t last) {
    const int64_t area = sizes.out_area(), size = images * area;
    float *const up = scratch(2 * size), *const normal = up + size;
    for (int64_t c = first; c < last; ++c) {
      for (int64_t n = 0; n < images; ++n) {
        copy(dy + (n * channels + c) * area, up + n * area, area);
        copy(y + (n * channels + c) * area, normal + n * area, area);
      }
      const Sums sums = accumulate(size, [=](int64_t i, float &plain, float &products) {
        plain += up[i];
        products += up[i] * normal[i];
      });
      const float shift = static_cast<float>(sums.first / size), slope = static_cast<float>(sums.second / size);
      const float scale = inverses[c];
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) {
        up[i] = scale * (up[i] - shift - normal[i] * slope);
      }
      const int64_t stride = channels * sizes.area(), start = c * sizes.area();
      work.backward(geometry.a(matrices_a, c), geometry.b(matrices_b, c), images, {x + start, stride}, {up, area},
                    {dx + start, stride}, added + start, da, db);
    }
  });
  return 0;
}

NEONEXT_SHAPES(neo_norm_grad, 3) { return {shape(0), shape(5), shape(6)}; }
