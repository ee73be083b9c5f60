// Declarations of template arguments mean something to the host's tiling only.
#pragma once

#define ASCENDC_TPL_ARGS_DECL(...)
#define ASCENDC_TPL_SEL(...)
#define ASCENDC_TPL_ARGS_SEL(...)
#define ASCENDC_TPL_SEL_PARAM(...)
