// The matrix product on processors with Intel's AMX.

#pragma once

#include "product.h"

namespace neonext {

// Returns whether amx_product works here, for matrices of this size better than ordinary vectors.
bool amx_suits(int64_t rows, int64_t columns, int64_t inner);

// `product` with the precision of float32, by six products of bfloat16.
void amx_product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result, int64_t stride,
                 bool add);

}  // namespace neonext
