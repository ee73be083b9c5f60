// The real toolchain generates tiling structures here. In the simulator they come from one of the kernel's own headers.
#pragma once

#include "../kernel_operator.h"
