// The real toolchain generates tiling structures here. In the twin they come from a header of the kernel's own.
#pragma once

#include "../kernel_operator.h"
