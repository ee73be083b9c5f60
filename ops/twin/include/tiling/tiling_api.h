// Host code, which the twin leaves out, but for the structures that kernels share with it.
#pragma once

#include "register/tilingdata_base.h"
