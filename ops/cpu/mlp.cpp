// The part of a block behind the normalization, and its gradients, for x, r and y of shape (N, C, H, W):
//
//     y = r + keep_n s_c (W2 f(W1 (gamma x + beta) + b1) + b2)
//
// f is an activation (activations.h). W1 is (I, C), W2 (C, I), gamma, beta, s and b2 are (C), b1 is (I), keep is (N) or
// (1). With n = gamma x + beta and h = W1 n + b1, y = r + keep s (W2 f(h) + b2). Backward, with g = keep dy:
//
//     e = f'(h) * (W2' (s g)),  dW1 = e n',  db1 = sum e
//     G = g f(h)',  dW2 = diag(s) G,  db2_c = s_c sum g_c,  ds_c = sum_i G_ci W2_ci + b2_c sum g_c
//     v = W1' e,    dx = gamma v,  dgamma_c = sum v_c x_c,  dbeta_c = sum v_c
//
// Maps take the factors, not the matrices: the matrices of the last stages are larger than the maps of small images.
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
    parts_ = together_ > 1 ? 1 : blocks(area, wanted);
    together_ = blocks(images, blocks(images, together_));
    count_ = blocks(images, together_) * parts_;
    // As many sums of the weights' gradients as the columns justify.
    slices_ = alone_ ? std::min<int64_t>({count_, 32, columns / 512}) : 1;
  }

  bool alone() const { return alone_; }
  int64_t count() const { return count_; }
  int64_t slices() const { return slices_; }

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
    const int64_t rows = alone ? 1 : blocks(extent.rows, kPart);
    const int64_t columns = alone ? 1 : blocks(extent.columns, 2 * kPart);
    parallel(rows * columns, [=, &step](int64_t index) {
      step(number, part(extent.rows, index % rows, rows), part(extent.columns, index / rows, columns));
    });
  }
}

class Forward {
 public:
  Forward(const Shape &shape, const Plan &plan, const Weights &weights, const float *x, const float *residual, float *y,
          float *hidden)
      : shape_(shape), plan_(plan), weights_(weights), x_(x), residual_(residual), y_(y), hidden_(hidden) {}

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
      const float gamma = weights_.gamma[c], beta = weights_.beta[c];
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        const float *const from = x_ + (image * shape_.channels + c) * shape_.area + pixel;
        float *const to = narrow + c * panel.columns() + column;
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          to[i] = gamma * from[i] + beta;
        }
      });
    }
  }

  void expand(const Panel &panel, const Range &rows, const Range &range, const float *narrow, float *wide) const {
    const int64_t columns = panel.columns(), width = range.high - range.low;
    float *const hidden = hidden_ + shape_.inner * panel.first;
    product(rows.high - rows.low, width, shape_.channels,
            {weights_.w1 + rows.low * shape_.channels, shape_.channels}, {narrow + range.low, columns},
            hidden + rows.low * columns + range.low, columns);
    for (int64_t row = rows.low; row < rows.high; ++row) {
      const float shift = weights_.b1[row];
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
            {weights_.w2 + rows.low * shape_.inner, shape_.inner}, {wide + range.low, columns},
            narrow + rows.low * columns + range.low, columns);
    for (int64_t c = rows.low; c < rows.high; ++c) {
      const float shift = weights_.b2[c];
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        const float *const from = narrow + c * columns + column;
        const int64_t start = (image * shape_.channels + c) * shape_.area + pixel;
        const float *const more = residual_ + start, factor = weights_.keep[image % weights_.keeps] * weights_.s[c];
        float *const to = y_ + start;
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          to[i] = more[i] + factor * (from[i] + shift);
        }
      });
    }
  }

  const Shape shape_;
  const Plan &plan_;
  const Weights weights_;
  const float *const x_, *const residual_;
  float *const y_, *const hidden_;
};

// Sums over the panels of a slice: dW1, G, and the sums of e, g, v x and v.
struct Slice {
  float *w1, *g;
  double *sums_e, *sums_g, *sums_vx, *sums_v;
};

class Backward {
 public:
  // The first slice has its matrices in `dw1` and `g`.
  Backward(const Shape &shape, const Plan &plan, const Weights &weights, const float *dy, const float *x,
           const float *hidden, float *dx, float *dw1, float *g)
      : shape_(shape), plan_(plan), weights_(weights), dy_(dy), x_(x), hidden_(hidden), dx_(dx), dw1_(dw1), g_(g),
        matrices_((plan.slices() - 1) * 2 * shape.channels * shape.inner),
        sums_(plan.slices() * (3 * shape.channels + shape.inner)) {}

  void run(int64_t slice) {
    const Range panels = part(plan_.count(), slice, plan_.slices());
    for (int64_t index = panels.low; index < panels.high; ++index) {
      run_panel(plan_[index], sums_of(slice), index == panels.low);
    }
  }

  // Returns the sums over all slices, in place of those of the first one.
  Slice total() {
    const int64_t size = shape_.channels * shape_.inner, count = 3 * shape_.channels + shape_.inner;
    const Slice all = sums_of(0);
    constexpr int64_t kPiece = 4096;
    parallel(2 * blocks(size, kPiece), [=](int64_t index) {
      float *const to = index % 2 == 0 ? all.w1 : all.g;
      const int64_t first = index / 2 * kPiece, last = std::min(size, first + kPiece);
      for (int64_t slice = 1; slice < plan_.slices(); ++slice) {
        const Slice some = sums_of(slice);
        const float *const from = index % 2 == 0 ? some.w1 : some.g;
#pragma GCC ivdep
        for (int64_t i = first; i < last; ++i) {
          to[i] += from[i];
        }
      }
    });
    for (int64_t slice = 1; slice < plan_.slices(); ++slice) {
      for (int64_t i = 0; i < count; ++i) {
        sums_[i] += sums_[slice * count + i];
      }
    }
    return all;
  }

 private:
  Slice sums_of(int64_t slice) {
    const int64_t channels = shape_.channels, inner = shape_.inner, size = channels * inner;
    double *const sums = sums_.data() + slice * (3 * channels + inner), *const others = sums + inner;
    float *const w1 = slice == 0 ? dw1_ : matrices_.values() + (slice - 1) * 2 * size;
    return {w1, slice == 0 ? g_ : w1 + size, sums, others, others + channels, others + 2 * channels};
  }

  void run_panel(const Panel &panel, const Slice &slice, bool first) const {
    const int64_t channels = shape_.channels, inner = shape_.inner, columns = panel.columns();
    Workspace workspace((4 * channels + 2 * inner) * columns);
    float *const x = workspace.values(), *const n = x + channels * columns, *const g = n + channels * columns;
    // s g, later v.
    float *const v = g + channels * columns;
    float *const value = v + channels * columns, *const e = value + inner * columns;
    const Extent extents[] = {{channels, columns}, {inner, columns},    {channels, inner},
                              {inner, channels},   {channels, columns}, {channels, 1}};
    run_steps(plan_.alone(), extents, [=, &panel](int number, const Range &rows, const Range &range) {
      switch (number) {
        case 0: return gather(panel, rows, range, x, n, g, v);
        case 1: return expand(panel, rows, range, v, value, e);
        case 2: return correlate(columns, rows, range, g, value, slice.g, inner, slice.sums_g, first);
        case 3: return correlate(columns, rows, range, e, n, slice.w1, channels, slice.sums_e, first);
        case 4: return contract(columns, rows, range, e, v);
        default: return scatter(panel, rows, x, v, slice, first);
      }
    });
  }

  void gather(const Panel &panel, const Range &rows, const Range &range, float *x, float *n, float *g,
              float *scaled) const {
    for (int64_t c = rows.low; c < rows.high; ++c) {
      const float gamma = weights_.gamma[c], beta = weights_.beta[c], scale = weights_.s[c];
      for_images(panel, range, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        const int64_t from = (image * shape_.channels + c) * shape_.area + pixel, to = c * panel.columns() + column;
        const float keep = weights_.keep[image % weights_.keeps];
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          x[to + i] = x_[from + i];
          n[to + i] = gamma * x_[from + i] + beta;
          g[to + i] = keep * dy_[from + i];
          scaled[to + i] = scale * g[to + i];
        }
      });
    }
  }

  void expand(const Panel &panel, const Range &rows, const Range &range, const float *scaled, float *value,
              float *e) const {
    const int64_t columns = panel.columns();
    product(rows.high - rows.low, range.high - range.low, shape_.channels,
            {weights_.w2 + rows.low, shape_.inner, true}, {scaled + range.low, columns},
            e + rows.low * columns + range.low, columns);
    for (int64_t row = rows.low; row < rows.high; ++row) {
      const float *const hidden = hidden_ + shape_.inner * panel.first + row * columns;
      float *const to = value + row * columns, *const up = e + row * columns;
      // The next row is far away, and prefetching by the processor ends at every page.
      constexpr int64_t kLine = 16;
      for (int64_t i = range.low; i < range.high; i += kLine) {
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

  void contract(int64_t columns, const Range &rows, const Range &range, const float *e, float *v) const {
    product(rows.high - rows.low, range.high - range.low, shape_.inner,
            {weights_.w1 + rows.low, shape_.channels, true}, {e + range.low, columns},
            v + rows.low * columns + range.low, columns);
  }

  void scatter(const Panel &panel, const Range &rows, const float *x, const float *v, const Slice &slice,
               bool first) const {
    const int64_t columns = panel.columns();
    for (int64_t c = rows.low; c < rows.high; ++c) {
      const float gamma = weights_.gamma[c], *const values = x + c * columns, *const up = v + c * columns;
      for_images(panel, {0, columns}, [&](int64_t image, int64_t pixel, int64_t column, int64_t width) {
        float *const to = dx_ + (image * shape_.channels + c) * shape_.area + pixel;
#pragma GCC ivdep
        for (int64_t i = 0; i < width; ++i) {
          to[i] = gamma * up[column + i];
        }
      });
      const Sums sums = accumulate(columns, [=](int64_t i, float &with_x, float &plain) {
        with_x += up[i] * values[i];
        plain += up[i];
      });
      slice.sums_vx[c] = first ? sums.first : slice.sums_vx[c] + sums.first;
      slice.sums_v[c] = first ? sums.second : slice.sums_v[c] + sums.second;
    }
  }

  const Shape shape_;
  const Plan &plan_;
  const Weights weights_;
  const float *const dy_, *const x_, *const hidden_;
  float *const dx_, *const dw1_, *const g_;
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
                    static_cast<const float *>(data[9]), results[0], results[3], results[5]);
  if (plan.alone()) {
    parallel(plan.slices(), [&](int64_t slice) { backward.run(slice); });
  } else {
    backward.run(0);
  }
  const Slice sums = backward.total();
  std::copy(sums.sums_e, sums.sums_e + inner, results[4]);
  std::copy(sums.sums_vx, sums.sums_vx + channels, results[1]);
  std::copy(sums.sums_v, sums.sums_v + channels, results[2]);
  constexpr int64_t kRows = 16;
  parallel(blocks(channels, kRows), [=](int64_t block) {
    for (int64_t c = block * kRows; c < std::min(channels, (block + 1) * kRows); ++c) {
      const float scale = w.s[c], *const weights = w.w2 + c * inner;
      float *const g = sums.g + c * inner;
      const auto term = [=](int64_t i, float &sum, float &) { sum += g[i] * weights[i]; };
      results[7][c] = static_cast<float>(accumulate(inner, term).first + w.b2[c] * sums.sums_g[c]);
      results[6][c] = static_cast<float>(scale * sums.sums_g[c]);
#pragma GCC ivdep
      for (int64_t i = 0; i < inner; ++i) {
        g[i] *= scale;
      }
    }
  });
  return 0;
}

NEONEXT_SHAPES(mlp_grad, 8) {
  return {shape(8), shape(0), shape(0), shape(2), shape(3), shape(4), shape(0), shape(0)};
}
