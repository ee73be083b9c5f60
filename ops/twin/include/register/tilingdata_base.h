// Tiling structures as a kernel sees them: the fields that op_host's header declares, in their order.
#pragma once

#include <cstdint>

#define BEGIN_TILING_DATA_DEF(NAME) struct NAME {
#define TILING_DATA_FIELD_DEF(TYPE, NAME)        \
    TYPE NAME;                                   \
    TYPE get_##NAME() const { return NAME; }
#define TILING_DATA_FIELD_DEF_ARR(TYPE, SIZE, NAME) TYPE NAME[SIZE];
#define TILING_DATA_FIELD_DEF_STRUCT(TYPE, NAME) TYPE NAME;
#define END_TILING_DATA_DEF }
#define REGISTER_TILING_DATA_CLASS(OPERATOR, NAME)
