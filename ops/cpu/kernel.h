// The interface of all kernels: the signatures by which MindSpore's `ops.Custom(func_type="aot")` calls them, and the
// vector type that they compute with.
//
// Every kernel takes and returns contiguous float32 tensors on the CPU (tables of geometry are int32). operators.py
// lists the inputs and outputs of each kernel, which come in that order in `data` and `shapes`.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

// Defines the kernel `name`. Its body reads inputs and writes outputs and returns 0.
#define NEONEXT_KERNEL(name)                                                                                         \
  extern "C" int name([[maybe_unused]] int count, [[maybe_unused]] void **data, [[maybe_unused]] int *dims,          \
                      [[maybe_unused]] int64_t **shapes, [[maybe_unused]] const char **types,                        \
                      [[maybe_unused]] void *stream, [[maybe_unused]] void *extra)

// Define how the shape of the only output, or of several outputs, follows from the shapes of the inputs; `shape(i)` is
// that of input i, with -1 for a dynamic size. Every output has the type of the first input.
//
// Shapes and types are inferred here instead of in Python, because a type that only Python knows is lost where a pass
// over the graph copies the operator. MindSpore looks up unmangled names, hence extern "C", although it passes and
// expects C++ types.
#define NEONEXT_SHAPE_AS(result, name)                                                                               \
  static result name##_shape(const neonext::InputShape &shape, int64_t **shapes);                                    \
  extern "C" result name##InferShape(int *dims, int64_t **shapes, void *) {                                          \
    return name##_shape({dims, shapes}, shapes);                                                                     \
  }                                                                                                                  \
  static result name##_shape([[maybe_unused]] const neonext::InputShape &shape, [[maybe_unused]] int64_t **shapes)
#define NEONEXT_SHAPE(name)                                                                                          \
  extern "C" TypeId name##InferType(std::vector<TypeId> inputs, void *) { return inputs[0]; }                        \
  NEONEXT_SHAPE_AS(std::vector<int64_t>, name)
#define NEONEXT_SHAPES(name, outputs)                                                                                \
  extern "C" std::vector<TypeId> name##InferType(std::vector<TypeId> inputs, void *) {                               \
    return std::vector<TypeId>(outputs, inputs[0]);                                                                  \
  }                                                                                                                  \
  NEONEXT_SHAPE_AS(std::vector<std::vector<int64_t>>, name)

// Declared as in MindSpore; only passed through.
enum TypeId : int;

namespace neonext {

struct InputShape {
  int *dims;
  int64_t **shapes;

  std::vector<int64_t> operator()(int index) const { return {shapes[index], shapes[index] + dims[index]}; }
};

// Floats of a register. Wider vectors are split by the compiler, through memory: code that moves them is slow then.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

// A copy instead of a cast: the address need not be aligned, and the compiler turns it into one instruction.
inline Vector load(const float *from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float *to, const Vector &value) { std::memcpy(to, &value, sizeof(value)); }

// Copies a short row; a call of memcpy would take longer than the copy.
inline void copy(const float *from, float *to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(to + i, load(from + i));
  }
  const auto piece = [&](int64_t size) {
    if (count - i >= size) {
      std::memcpy(to + i, from + i, size * sizeof(float));
      i += size;
    }
  };
  piece(8), piece(4), piece(2), piece(1);
}

// The lanes of two vectors that the list names. GCC 11 and earlier have only __builtin_shuffle, which takes the list as a
// vector of integers; both become one instruction.
#if defined(__clang__) || __GNUC__ >= 12
#define NEONEXT_SHUFFLE(Places, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NEONEXT_SHUFFLE(Places, a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// Transposes kLanes rows of kLanes values in registers.
inline void transpose(Vector *now) {
  using Places [[maybe_unused]] = int32_t __attribute__((vector_size(sizeof(Vector))));
  Vector next[kLanes];
#if defined(__AVX__) && !defined(__AVX512F__)
  // Two rounds within the halves of registers, where a shuffle is one instruction, then one between the halves.
  for (int i = 0; i < kLanes; i += 2) {
    next[i] = NEONEXT_SHUFFLE(Places, now[i], now[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    next[i + 1] = NEONEXT_SHUFFLE(Places, now[i], now[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int k = 0; k < 2; ++k) {
      now[i + 2 * k] = NEONEXT_SHUFFLE(Places, next[i + k], next[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      now[i + 2 * k + 1] = NEONEXT_SHUFFLE(Places, next[i + k], next[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < kLanes / 2; ++i) {
    next[i] = NEONEXT_SHUFFLE(Places, now[i], now[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    next[i + 4] = NEONEXT_SHUFFLE(Places, now[i], now[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  std::memcpy(now, next, sizeof(next));
#else
  // The two halves of the rows are interleaved again and again.
#pragma GCC unroll 4
  for (int size = kLanes; size > 1; size /= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < kLanes / 2; ++k) {
      const Vector &a = now[k], &b = now[k + kLanes / 2];
#if defined(__AVX512F__)
      next[2 * k] = NEONEXT_SHUFFLE(Places, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * k + 1] = NEONEXT_SHUFFLE(Places, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
      next[2 * k] = NEONEXT_SHUFFLE(Places, a, b, 0, 4, 1, 5);
      next[2 * k + 1] = NEONEXT_SHUFFLE(Places, a, b, 2, 6, 3, 7);
#endif
    }
    std::memcpy(now, next, sizeof(next));
  }
#endif
}

// The sum of the lanes, in float64.
inline double total(const Vector &value) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) {
    sum += value[i];
  }
  return sum;
}

// The number of blocks that hold `size` values.
inline int64_t blocks(int64_t size, int64_t by) { return (size + by - 1) / by; }

inline int64_t elements(int dims, const int64_t *shape) {
  int64_t product = 1;
  for (int i = 0; i < dims; ++i) {
    product *= shape[i];
  }
  return product;
}

}  // namespace neonext
