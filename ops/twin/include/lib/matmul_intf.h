// Vector kernels include this by habit; the twin has no cube unit, and a use of Matmul does not compile.
#pragma once

#include "../kernel_operator.h"
