// What all kernels share: the vector type, and the signatures by which MindSpore's `ops.Custom` calls them.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

// The kernel `name`: inputs, then outputs.
#define NEONEXT_KERNEL(name)                                                                                         \
  extern "C" int name([[maybe_unused]] int count, [[maybe_unused]] void **data, [[maybe_unused]] int *dims,          \
                      [[maybe_unused]] int64_t **shapes, [[maybe_unused]] const char **types,                        \
                      [[maybe_unused]] void *stream, [[maybe_unused]] void *extra)

// The shape of its only output, or of its several outputs, from the inputs' `shapes`; `shape(i)` is that of input i.
// Open sizes are -1 here. Every output has the type of the first input. MindSpore looks for the names in C, though it
// is C++ that is handed over; a type that only Python knows would be lost where a pass copies the operator.
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

// As MindSpore declares it.
enum TypeId : int;

namespace neonext {

struct InputShape {
  int *dims;
  int64_t **shapes;

  std::vector<int64_t> operator()(int index) const { return {shapes[index], shapes[index] + dims[index]}; }
};

// The compiler splits it where the machine's vectors are shorter.
constexpr int kLanes = 16;
using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

inline Vector load(const float *from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float *to, const Vector &value) { std::memcpy(to, &value, sizeof(value)); }

inline double total(const Vector &value) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) {
    sum += value[i];
  }
  return sum;
}

inline int64_t elements(int dims, const int64_t *shape) {
  int64_t product = 1;
  for (int i = 0; i < dims; ++i) {
    product *= shape[i];
  }
  return product;
}

}  // namespace neonext
