// NeoCell for MindSpore's PyNative mode, through aclnn. ops/ascend.py compiles this file when it is first used on
// Ascend. aclnn infers no shapes for the caller, so the outputs are made here.
#include <cstdint>
#include <optional>
#include <vector>

#include "ms_extension/all.h"

namespace neonext {
using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<ms::Tensor>;

ms::Tensor NeoCell(
    const ms::Tensor& x, const ms::Tensor& coefA, const ms::Tensor& coefB, const OptionalTensor& bias,
    const Ints& channels, const Ints& hIn, const Ints& hOut, const Ints& wIn, const Ints& wOut, const Ints& shiftA,
    const Ints& shiftB, const Ints& outputSize, int64_t accumulateFp32)
{
    Ints shape = x.shape(); // (N, C1, H, W, C0)
    shape[2] = outputSize[0];
    shape[3] = outputSize[1];
    const ms::Tensor y(x.data_type(), shape);
    auto runner = std::make_shared<ms::pynative::AclnnOpRunner>("NeoCell");
    runner->SetLaunchFunc(LAUNCH_ACLNN_FUNC(
        aclnnNeoCell, x, coefA, coefB, bias, channels, hIn, hOut, wIn, wOut, shiftA, shiftB, outputSize,
        accumulateFp32, y));
    runner->Run({x, coefA, coefB, bias.value_or(ms::Tensor())}, {y});
    return y;
}

std::vector<ms::Tensor> NeoCellGrad(
    const ms::Tensor& x, const ms::Tensor& dy, const ms::Tensor& coefA, const ms::Tensor& coefB, const Ints& channels,
    const Ints& hIn, const Ints& hOut, const Ints& wIn, const Ints& wOut, const Ints& shiftA, const Ints& shiftB,
    const Ints& outputSize, int64_t accumulateFp32)
{
    const int64_t images = x.shape()[0];
    const ms::Tensor gradA(ms::TypeId::kNumberTypeFloat32, Ints{images, coefA.shape()[0], coefA.shape()[1]});
    const ms::Tensor gradB(ms::TypeId::kNumberTypeFloat32, Ints{images, coefB.shape()[0], coefB.shape()[1]});
    auto runner = std::make_shared<ms::pynative::AclnnOpRunner>("NeoCellGrad");
    runner->SetLaunchFunc(LAUNCH_ACLNN_FUNC(
        aclnnNeoCellGrad, x, dy, coefA, coefB, channels, hIn, hOut, wIn, wOut, shiftA, shiftB, outputSize,
        accumulateFp32, gradA, gradB));
    runner->Run({x, dy, coefA, coefB}, {gradA, gradB});
    return {gradA, gradB};
}
} // namespace neonext

PYBIND11_MODULE(MS_EXTENSION_NAME, m)
{
    m.def("neo_cell", PYBOOST_CALLER(1, neonext::NeoCell));
    m.def("neo_cell_grad", PYBOOST_CALLER(2, neonext::NeoCellGrad));
}
