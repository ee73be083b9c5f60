// The structures that host code shares with kernels. The simulator leaves the bodies of host functions out; what stays
// of them names types of their parameters.
#pragma once

#include "register/tilingdata_base.h"

namespace AscendC {
class TensorShape {};
}  // namespace AscendC
