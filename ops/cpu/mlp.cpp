// The part of a block behind the normalization, and its gradients, for x, r and y of shape (N, C, H, W):
//
//     y = r + keep_n s_c (W2 f(W1 (gamma x + beta) + b1) + b2)
//
// f is an activation (activations.h). W1 is (I, C), W2 (C, I), gamma, beta, s and b2 are (C), b1 is (I), keep is (N) or
// (1). The factors go into the matrices, V1 = W1 diag(gamma), c1 = b1 + W1 beta, V2 = diag(s) W2, c2 = s b2, which leaves
// y = r + keep (V2 f(h) + c2) with h = V1 x + c1. Backward, with g = keep dy and e = f'(h) * (V2' g):
//
//     G = g f(h)',  dW2 = diag(s) G,  db2_c = s_c sum g_c,  ds_c = sum_i G_ci W2_ci + b2_c sum g_c
//     E = e x',     dW1 = E diag(gamma) + (sum e) beta',  db1 = sum e,  dx = V1' e
//     dgamma_c = sum_i E_ic W1_ic,  dbeta_c = sum_i W1_ic sum e_i
//
// The pixels of all images are columns of one matrix. They are computed in panels: the columns of some images, side by
// side, or a part of the columns of one image. Where there are many columns, a thread does everything for a panel while
// it is in the cache (the gradients of the weights are sums over slices of panels, each with sums of its own). Where
// there are few, or the matrices are large, the threads share each step of one large panel.
//
// Only h is kept for the gradients, panel after panel.

#include <algorithm>
#include <mutex>
#include <vector>

#include "activations.h"
#include "kernel.h"
#include "parallel.h"
#include "product.h"
#include "sums.h"

namespace neonext {
namespace {

// Rows and columns of one product where threads share a panel.
constexpr int64_t kPart = 192;

int64_t divided(int64_t size, int64_t by) { return (size + by - 1) / by; }

struct Range {
  int64_t low, high;
};

// Returns part `index` of `parts` parts of 0 .. size.
Range part(int64_t size, int64_t index, int64_t parts) { return {size * index / parts, size * (index + 1) / parts}; }

// Some columns: `width` columns, from `offset`, of each of some images.
struct Panel {
  int64_t image, images, offset, width, first;

  int64_t columns() const { return images * width; }
};

// The division of all columns into panels.
class Plan {
 public:
  Plan(int64_t images, int64_t channels, int64_t area) : images_(images), area_(area) {
    const int64_t columns = images * area;
    // A panel with its hidden values takes about a megabyte then.
    constexpr int64_t kValues = 48 << 10, kWidest = 256, kLeast = 2048;
    alone_ = channels <= kWidest && columns >= kLeast;
    const int64_t wanted = alone_ ? std::clamp<int64_t>(kValues / channels, 192, 512) : 1024;
    together_ = std::clamp<int64_t>(wanted / area, 1, images);
    // Equal parts: of one image, or groups of images.
    parts_ = together_ > 1 ? 1 : divided(area, wanted);
    together_ = divided(images, divided(images, together_));
    count_ = divided(images, together_) * parts_;
    // As many sums of the weights' gradients as the columns justify.
    slices_ = alone_ ? std::min<int64_t>({count_, 32, columns / 512}) : 1;
  }

  bool alone() const { return alone_; }
  int64_t count() const { return count_; }
  int64_t slices() const { return slices_; }
  int64_t most() const { return together_ * divided(area_, parts_); }

  Panel operator[](int64_t index) const {
    const int64_t image = index / parts_ * together_, images = std::min(together_, images_ - image);
    const Range range = part(area_, index % parts_, parts_);
    return {image, images, range.low, range.high - range.low, image * area_ + range.low};
  }

 private:
  int64_t images_, area_, together_, parts_, count_, slices_;
  bool alone_;
};

// Memory that stays allocated from call to call: fresh memory costs a page fault for every 4 KiB.
class Workspace {
 public:
  explicit Workspace(int64_t size) {
    const std::lock_guard<std::mutex> lock(mutex());
    if (!spare().empty()) {
      buffer_.swap(spare().back());
      spare().pop_back();
    }
    if (static_cast<int64_t>(buffer_.size()) < size + kLanes) {
      buffer_ = std::vector<float>(size + kLanes);
    }
  }
  ~Workspace() {
    const std::lock_guard<std::mutex> lock(mutex());
    spare().emplace_back().swap(buffer_);
  }
  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;

  // Returns memory that starts at a vector boundary.
  float *values() {
    const auto address = reinterpret_cast<uintptr_t>(buffer_.data());
    return buffer_.data() + (sizeof(Vector) - address % sizeof(Vector)) % sizeof(Vector) / sizeof(float);
  }

 private:
  // Never destroyed, as threads of a pool may compute while the process ends.
  static std::mutex &mutex() {
    static std::mutex *const mutex = new std::mutex;
    return *mutex;
  }
  static std::vector<std::vector<float>> &spare() {
    static auto *const spare = new std::vector<std::vector<float>>;
    return *spare;
  }

  std::vector<float> buffer_;
};

struct Weights {
  const float *gamma, *beta, *w1, *b1, *w2, *b2, *s, *keep;
  int64_t keeps;
  // Kind and slope of the activation.
  const float *activation;
};

// V1, c1, V2 and c2.
class Factors {
 public:
  Factors(const Weights &w, int64_t channels, int64_t inner)
      : storage_(2 * inner * channels + inner + channels), v1_(storage_.values()), v2_(v1_ + inner * channels),
        c1_(v2_ + inner * channels), c2_(c1_ + inner) {
    parallel(divided(inner, kRows), [=](int64_t block) {
      for (int64_t i = block * kRows; i < std::min(inner, (block + 1) * kRows); ++i) {
        const float *const row = w.w1 + i * channels;
        float *const to = v1_ + i * channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; ++c) {
          to[c] = row[c] * w.gamma[c];
        }
        const auto term = [=](int64_t c, float &sum, float &) { sum += row[c] * w.beta[c]; };
        c1_[i] = static_cast<float>(accumulate(channels, term).first + w.b1[i]);
      }
    });
    parallel(divided(channels, kRows), [=](int64_t block) {
      for (int64_t c = block * kRows; c < std::min(channels, (block + 1) * kRows); ++c) {
        const float scale = w.s[c], *const row = w.w2 + c * inner;
        float *const to = v2_ + c * inner;
#pragma GCC ivdep
        for (int64_t i = 0; i < inner; ++i) {
          to[i] = scale * row[i];
        }
        c2_[c] = scale * w.b2[c];
      }
    });
  }

  const float *v1() const { return v1_; }
  const float *v2() const { return v2_; }
  const float *c1() const { return c1_; }
  const float *c2() const { return c2_; }

 private:
  static constexpr int64_t kRows = 64;
  Workspace storage_;
  float *const v1_, *const v2_, *const c1_, *const c2_;
};

struct Shape {
  int64_t images, channels, inner, area;
};

// Calls body(image, first pixel, first column, width) for every image whose columns are in the range.
template <typename Body>
void for_images(const Panel &panel, const Range &columns, const Body &body) {
  for (int64_t n = columns.low / panel.width; n * panel.width < columns.high; ++n) {
    const int64_t low = std::max(columns.low, n * panel.width), high = std::min(columns.high, (n + 1) * panel.width);
    body(panel.image + n, panel.offset + low - n * panel.width, low, high - low);
  }
}

// Rows and columns of the result of a step.
struct Extent {
  int64_t rows, columns;
};

// Calls step(number, rows, columns) for all parts of every step, of which a later one may need all of an earlier one.
template <int kSteps, typename Step>
void run_steps(bool alone, const Extent (&extents)[kSteps], const Step &step) {
  for (int number = 0; number < kSteps; ++number) {
    const Extent extent = extents[number];
    const int64_t rows = alone ? 1 : divided(extent.rows, kPart);
    const int64_t columns = alone ? 1 : divided(extent.columns, 2 * kPart);
    parallel(rows * columns, [=, &step](int64_t index) {
      step(number, part(extent.rows, index % rows, rows), part(extent.columns, index / rows, columns));
    });
  }
}

class Forward {
 public:
  Forward(const Shape &shape, const Plan &plan, const Weights &weights, const float *x, const float *residual, float *y,
          float *hidden)
      : shape_(shape), plan_(plan), weights_(weights), factors_(weights, shape.channels, shape.inner), x_(x),
        residual_(residual), y_(y), hidden_(hidden) {}

  void run(const Panel &panel) const {
    const int64_t channels = shape_.channels, inner = shape_.inner, columns = panel.columns();
    Workspace workspace((channels + inner) * columns);
    float *const narrow = workspace.values(), *const wide = narrow + channels * columns;
    const Extent extents[] = {{channels, columns}, {inner, columns}, {channels, columns}};
    run_steps(plan_.alone(), extents, [=, &panel](int number, const Range &rows, const Range &range) {
      number == 0 ? gather(panel, rows, range, narrow)
                  : number == 1 ? expand(panel, rows, range, narrow, wide) : contract(panel, rows, range, wide, narrow);
    });
  }

 private:
  void gather(const Panel &panel, const Range &rows, const Range &range, float *narrow) const {
    for (int64_t c = rows.low; c < rows.high; ++c) {
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        copy(x_ + (image * shape_.channels + c) * shape_.area + pixel, narrow + c * panel.columns() + column, width);
      });
    }
  }

  void expand(const Panel &panel, const Range &rows, const Range &range, const float *narrow, float *wide) const {
    const int64_t columns = panel.columns(), width = range.high - range.low;
    float *const hidden = hidden_ + shape_.inner * panel.first;
    product(rows.high - rows.low, width, shape_.channels,
            {factors_.v1() + rows.low * shape_.channels, shape_.channels}, {narrow + range.low, columns},
            hidden + rows.low * columns + range.low, columns);
    for (int64_t row = rows.low; row < rows.high; ++row) {
      const float shift = factors_.c1()[row];
      float *const from = hidden + row * columns, *const to = wide + row * columns;
      with_activation(weights_.activation, [=](const auto &activation) {
#pragma GCC ivdep
        for (int64_t i = range.low; i < range.high; ++i) {
          const float value = from[i] + shift;
          from[i] = value;
          to[i] = activation.value(value);
        }
      });
    }
  }

  void contract(const Panel &panel, const Range &rows, const Range &range, const float *wide, float *narrow) const {
    const int64_t columns = panel.columns();
    product(rows.high - rows.low, range.high - range.low, shape_.inner,
            {factors_.v2() + rows.low * shape_.inner, shape_.inner}, {wide + range.low, columns},
            narrow + rows.low * columns + range.low, columns);
    for (int64_t c = rows.low; c < rows.high; ++c) {
      const float shift = factors_.c2()[c];
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        const float *const from = narrow + c * columns + column;
        const int64_t start = (image * shape_.channels + c) * shape_.area + pixel;
        const float *const more = residual_ + start, keep = weights_.keep[image % weights_.keeps];
        float *const to = y_ + start;
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          to[i] = more[i] + keep * (from[i] + shift);
        }
      });
    }
  }

  const Shape shape_;
  const Plan &plan_;
  const Weights weights_;
  const Factors factors_;
  const float *const x_, *const residual_;
  float *const y_, *const hidden_;
};

// Sums over the panels of a slice: E and the sums of e, G and the sums of g.
struct Slice {
  float *e, *g;
  double *sums_e, *sums_g;
};

class Backward {
 public:
  Backward(const Shape &shape, const Plan &plan, const Weights &weights, const float *dy, const float *x,
           const float *hidden, float *dx)
      : shape_(shape), plan_(plan), weights_(weights), factors_(weights, shape.channels, shape.inner), dy_(dy), x_(x),
        hidden_(hidden), dx_(dx), matrices_(plan.slices() * 2 * shape.channels * shape.inner),
        sums_(plan.slices() * (shape.channels + shape.inner)) {}

  void run(int64_t slice) {
    const Range panels = part(plan_.count(), slice, plan_.slices());
    for (int64_t index = panels.low; index < panels.high; ++index) {
      run_panel(plan_[index], sums_of(slice), index == panels.low);
    }
  }

  // Returns the sums over all slices, in place of those of the first one.
  Slice total() {
    const int64_t size = 2 * shape_.channels * shape_.inner, count = shape_.channels + shape_.inner;
    float *const matrices = matrices_.values();
    constexpr int64_t kPiece = 4096;
    parallel(divided(size, kPiece), [=](int64_t piece) {
      const int64_t last = std::min(size, (piece + 1) * kPiece);
      for (int64_t slice = 1; slice < plan_.slices(); ++slice) {
        const float *const from = matrices + slice * size;
#pragma GCC ivdep
        for (int64_t i = piece * kPiece; i < last; ++i) {
          matrices[i] += from[i];
        }
      }
    });
    for (int64_t slice = 1; slice < plan_.slices(); ++slice) {
      for (int64_t i = 0; i < count; ++i) {
        sums_[i] += sums_[slice * count + i];
      }
    }
    return sums_of(0);
  }

 private:
  Slice sums_of(int64_t slice) {
    const int64_t channels = shape_.channels, inner = shape_.inner;
    float *const e = matrices_.values() + slice * 2 * channels * inner;
    double *const sums = sums_.data() + slice * (channels + inner);
    return {e, e + channels * inner, sums, sums + inner};
  }

  void run_panel(const Panel &panel, const Slice &slice, bool first) const {
    const int64_t channels = shape_.channels, inner = shape_.inner, columns = panel.columns();
    Workspace workspace(2 * (channels + inner) * columns);
    // x, g (later dx), f(h) and e.
    float *const x = workspace.values(), *const g = x + channels * columns, *const value = g + channels * columns,
                 *const e = value + inner * columns;
    const Extent extents[] = {
        {channels, columns}, {inner, columns}, {channels, inner}, {inner, channels}, {channels, columns}};
    run_steps(plan_.alone(), extents, [=, &panel](int number, const Range &rows, const Range &range) {
      switch (number) {
        case 0: return gather(panel, rows, range, x, g);
        case 1: return expand(panel, rows, range, g, value, e);
        case 2: return correlate(columns, rows, range, g, value, slice.g, inner, slice.sums_g, first);
        case 3: return correlate(columns, rows, range, e, x, slice.e, channels, slice.sums_e, first);
        default: return contract(panel, rows, range, e, g);
      }
    });
  }

  void gather(const Panel &panel, const Range &rows, const Range &range, float *x, float *g) const {
    for (int64_t c = rows.low; c < rows.high; ++c) {
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        const int64_t from = (image * shape_.channels + c) * shape_.area + pixel, to = c * panel.columns() + column;
        copy(x_ + from, x + to, width);
        const float keep = weights_.keep[image % weights_.keeps];
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          g[to + i] = keep * dy_[from + i];
        }
      });
    }
  }

  void expand(const Panel &panel, const Range &rows, const Range &range, const float *g, float *value, float *e) const {
    const int64_t columns = panel.columns();
    product(rows.high - rows.low, range.high - range.low, shape_.channels,
            {factors_.v2() + rows.low, shape_.inner, true}, {g + range.low, columns},
            e + rows.low * columns + range.low, columns);
    for (int64_t row = rows.low; row < rows.high; ++row) {
      const float *const hidden = hidden_ + shape_.inner * panel.first + row * columns;
      float *const to = value + row * columns, *const up = e + row * columns;
      // The next row is far away, and prefetching by the processor ends at every page.
      for (int64_t i = range.low; i < range.high; i += kLanes) {
        __builtin_prefetch(hidden + columns + i);
      }
      with_activation(weights_.activation, [=](const auto &activation) {
#pragma GCC ivdep
        for (int64_t i = range.low; i < range.high; ++i) {
          float slope;
          to[i] = activation.value(hidden[i], &slope);
          up[i] *= slope;
        }
      });
    }
  }

  // Computes a part of left * right', or adds it to `result`, and the sums of the rows of `left`.
  static void correlate(int64_t columns, const Range &rows, const Range &range, const float *left, const float *right,
                        float *result, int64_t stride, double *sums, bool first) {
    product(rows.high - rows.low, range.high - range.low, columns, {left + rows.low * columns, columns},
            {right + range.low * columns, columns, true}, result + rows.low * stride + range.low, stride, !first);
    if (range.low > 0) {
      return;
    }
    for (int64_t row = rows.low; row < rows.high; ++row) {
      const float *const from = left + row * columns;
      const double sum = accumulate(columns, [=](int64_t i, float &plain, float &) { plain += from[i]; }).first;
      sums[row] = first ? sum : sums[row] + sum;
    }
  }

  void contract(const Panel &panel, const Range &rows, const Range &range, const float *e, float *narrow) const {
    const int64_t columns = panel.columns();
    product(rows.high - rows.low, range.high - range.low, shape_.inner,
            {factors_.v1() + rows.low, shape_.channels, true}, {e + range.low, columns},
            narrow + rows.low * columns + range.low, columns);
    for (int64_t c = rows.low; c < rows.high; ++c) {
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        copy(narrow + c * columns + column, dx_ + (image * shape_.channels + c) * shape_.area + pixel, width);
      });
    }
  }

  const Shape shape_;
  const Plan &plan_;
  const Weights weights_;
  const Factors factors_;
  const float *const dy_, *const x_, *const hidden_;
  float *const dx_;
  Workspace matrices_;
  std::vector<double> sums_;
};

// Returns the first eight inputs, and the settings of a block, of which the last two are the activation.
Weights weights_at(void **data, int64_t keeps, int settings) {
  const auto tensor = [=](int index) { return static_cast<const float *>(data[index]); };
  return {tensor(0), tensor(1), tensor(2), tensor(3),
          tensor(4), tensor(5), tensor(6), tensor(7), keeps, tensor(settings) + 2};
}

}  // namespace
}  // namespace neonext

// gamma (C), beta (C), W1 (I, C), b1 (I), W2 (C, I), b2 (C), s (C), keep (N) or (1), x (N, C, H, W), r (N, C, H, W),
// settings (4) -> y (N, C, H, W), h of the size (N, I, H, W)
NEONEXT_KERNEL(mlp) {
  using namespace neonext;
  const Shape shape = {shapes[8][0], shapes[8][1], shapes[2][0], shapes[8][2] * shapes[8][3]};
  const Plan plan(shape.images, shape.channels, shape.area);
  const Forward forward(shape, plan, weights_at(data, shapes[7][0], 10), static_cast<const float *>(data[8]),
                        static_cast<const float *>(data[9]), static_cast<float *>(data[11]),
                        static_cast<float *>(data[12]));
  const auto run = [&](int64_t index) { forward.run(plan[index]); };
  if (plan.alone()) {
    parallel(plan.count(), run);
  } else {
    for (int64_t index = 0; index < plan.count(); ++index) {
      run(index);
    }
  }
  return 0;
}

NEONEXT_SHAPES(mlp, 2) { return {shape(8), {shapes[8][0], shapes[2][0], shapes[8][2], shapes[8][3]}}; }

// the same inputs up to x, h, dy, settings -> dx, dgamma, dbeta, dW1, db1, dW2, db2, ds
NEONEXT_KERNEL(mlp_grad) {
  using namespace neonext;
  const Shape shape = {shapes[8][0], shapes[8][1], shapes[2][0], shapes[8][2] * shapes[8][3]};
  const int64_t channels = shape.channels, inner = shape.inner;
  const Plan plan(shape.images, channels, shape.area);
  const Weights w = weights_at(data, shapes[7][0], 11);
  float *const *const results = reinterpret_cast<float **>(data + 12);
  Backward backward(shape, plan, w, static_cast<const float *>(data[10]), static_cast<const float *>(data[8]),
                    static_cast<const float *>(data[9]), results[0]);
  if (plan.alone()) {
    parallel(plan.slices(), [&](int64_t slice) { backward.run(slice); });
  } else {
    backward.run(0);
  }
  const Slice sums = backward.total();
  constexpr int64_t kRows = 16;
  parallel(divided(inner, kRows), [=](int64_t block) {
    for (int64_t i = block * kRows; i < std::min(inner, (block + 1) * kRows); ++i) {
      const float sum = static_cast<float>(sums.sums_e[i]);
      const float *const from = sums.e + i * channels;
      float *const to = results[3] + i * channels;
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        to[c] = from[c] * w.gamma[c] + sum * w.beta[c];
      }
      results[4][i] = sum;
    }
  });
  parallel(divided(channels, kRows), [=](int64_t block) {
    const int64_t low = block * kRows, high = std::min(channels, low + kRows);
    double dgamma[kRows] = {}, dbeta[kRows] = {};
    for (int64_t i = 0; i < inner; ++i) {
      for (int64_t c = low; c < high; ++c) {
        dgamma[c - low] += static_cast<double>(sums.e[i * channels + c]) * w.w1[i * channels + c];
        dbeta[c - low] += sums.sums_e[i] * w.w1[i * channels + c];
      }
    }
    for (int64_t c = low; c < high; ++c) {
      results[1][c] = static_cast<float>(dgamma[c - low]);
      results[2][c] = static_cast<float>(dbeta[c - low]);
      const float *const from = sums.g + c * inner, *const weights = w.w2 + c * inner, scale = w.s[c];
      float *const to = results[5] + c * inner;
      const auto term = [=](int64_t i, float &sum, float &) { sum += from[i] * weights[i]; };
      results[7][c] = static_cast<float>(accumulate(inner, term).first + w.b2[c] * sums.sums_g[c]);
      results[6][c] = static_cast<float>(scale * sums.sums_g[c]);
#pragma GCC ivdep
      for (int64_t i = 0; i < inner; ++i) {
        to[i] = scale * from[i];
      }
    }
  });
  return 0;
}

NEONEXT_SHAPES(mlp_grad, 8) {
  return {shape(8), shape(0), shape(0), shape(2), shape(3), shape(4), shape(0), shape(0)};
}
