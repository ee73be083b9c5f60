// The matrix product of oneDNN, which MindSpore has loaded, or a faster one.

#include "product.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "amx.h"
#include "avx2.h"

namespace neonext {
namespace {

using Gemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                     float, float *, int64_t);

Gemm find_gemm() {
  void *const library = dlopen("libdnnl.so.3", RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr ? nullptr : reinterpret_cast<Gemm>(dlsym(library, "dnnl_sgemm"));
}

Gemm gemm() {
  static const Gemm function = find_gemm();
  return function;
}

}  // namespace

void product(int64_t rows, int64_t columns, int64_t inner, Factor left, Factor right, float *result, int64_t stride,
             bool add) {
  if (amx_suits(rows, columns, inner)) {
    amx_product(rows, columns, inner, left, right, result, stride, add);
    return;
  }
  if (avx2_suits(rows, columns, inner, left)) {
    avx2_product(rows, columns, inner, left, right, result, stride, add);
    return;
  }
  const int status = gemm()(left.transposed ? 'T' : 'N', right.transposed ? 'T' : 'N', rows, columns, inner, 1.0f,
                            left.values, left.stride, right.values, right.stride, add ? 1.0f : 0.0f, result, stride);
  if (status != 0) {
    throw std::runtime_error("a matrix product of oneDNN failed (status " + std::to_string(status) + ")");
  }
}

}  // namespace neonext

// Returns 1 if oneDNN is loaded.
extern "C" int products_available() { return neonext::gemm() != nullptr; }
