// Vector kernels include this by habit. The simulator has no cube unit, so a use of Matmul does not compile.
#pragma once

#include "../kernel_operator.h"
