// The structures that host code shares with kernels; the simulator leaves the rest of the host code out.
#pragma once

#include "register/tilingdata_base.h"
