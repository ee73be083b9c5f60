// A stand-in for AscendC's kernel_operator.h, with which a vector kernel's own source runs on the host.
//
// This simulator raises an error wherever the device would fail or give undefined results, and counts the work of each
// pipe. It simulates no time. The page on the operator in docs/ lists what is checked and what is missing.
#pragma once

#include <utility>

#include "twin/convert.h"
#include "twin/copy.h"
#include "twin/dtypes.h"
#include "twin/elementwise.h"
#include "twin/launch.h"
#include "twin/library.h"
#include "twin/library_rows.h"
#include "twin/pipe.h"
#include "twin/rearrange.h"
#include "twin/reduce.h"
#include "twin/scalar.h"
#include "twin/select.h"
#include "twin/sort.h"
#include "twin/system.h"
#include "twin/traits.h"
