// The matrix product on processors with AVX2 but without AVX-512.

#pragma once

#include "product.h"

namespace neonext {

// Returns whether avx2_product works here, for these matrices better than oneDNN's product.
bool avx2_suits(int64_t rows, int64_t columns, int64_t inner, const Factor &left);

// `product` by multiply-adds of 8 lanes.
void avx2_product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result, int64_t stride,
                  bool add);

}  // namespace neonext
