// The real toolchain generates tiling structures here. In the simulator those of a kernel come from one of its own
// headers, and those of the library from kernel_operator.h.
#pragma once

#include "../kernel_operator.h"
