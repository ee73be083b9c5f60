// Names of the real toolchain: qualifiers, pipes, events, positions and the other public enumerations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine.h"

#define __aicore__
#define __global__ __attribute__((visibility("default")))
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#define __ssbuf__
#define __vector__
#define __cube__
#define __mix__(...)
#define __kfc_workspace__
#define __tiling_data_ptr__
#define __in_pipe__(...)
#define __out_pipe__(...)
#define __inout_pipe__(...)
#define __sync_alias__
#define __sync_noalias__
#define __check_sync_alias__
#define __BLOCK_LOCAL__
#define __inline__ inline
#define __WORKGROUP_LOCAL__
#ifndef GM_ADDR
#define GM_ADDR __gm__ uint8_t*
#endif
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#endif
#ifndef unlikely
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

using float16_t = half;
using float32_t = float;

enum pipe_t {
    PIPE_S = 0, PIPE_V = 1, PIPE_M = 2, PIPE_MTE1 = 3, PIPE_MTE2 = 4, PIPE_MTE3 = 5, PIPE_ALL = 6, PIPE_FIX = 10,
};

enum event_t { EVENT_ID0 = 0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

enum class cache_line_t { SINGLE_CACHE_LINE = 0, ENTIRE_DATA_CACHE };

enum KernelMetaType : uint8_t {
    KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_AIC_ONLY, KERNEL_TYPE_MIX_AIV_1_0, KERNEL_TYPE_MIX_AIC_1_0,
    KERNEL_TYPE_MIX_AIC_1_1, KERNEL_TYPE_MIX_AIC_1_2, KERNEL_TYPE_AICORE, KERNEL_TYPE_VECTORCORE,
    KERNEL_TYPE_MIX_AICORE, KERNEL_TYPE_MIX_VECTOR_CORE, KERNEL_TYPE_MAX,
};

namespace AscendC {

/// Two numbers of 4 bits, the first one in the low bits. Lengths and offsets of their tensors count bytes here.
struct int4b_t {
    uint8_t pair;
};

enum class TPosition : uint8_t {
    GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM = VECCALC, SPM, SHM = SPM, TSCM, C2PIPE2GM,
    C2PIPE2LOCAL, MAX,
};
using QuePosition = TPosition;

enum class Hardware : uint8_t { GM, UB, L1, L0A, L0B, L0C, BIAS, FIXBUF, MAX };

// The one list of hardware events, source and target pipe of each, in the order of the device's numbers.
#define NEONEXT_TWIN_EVENTS(EVENT)                                                                                    \
    EVENT(MTE2, MTE1) EVENT(MTE1, MTE2) EVENT(MTE1, M) EVENT(M, MTE1) EVENT(MTE2, V) EVENT(V, MTE2) EVENT(MTE3, V)    \
    EVENT(V, MTE3) EVENT(M, V) EVENT(V, M) EVENT(V, V) EVENT(MTE3, MTE1) EVENT(MTE1, MTE3) EVENT(MTE1, V)             \
    EVENT(MTE2, M) EVENT(M, MTE2) EVENT(V, MTE1) EVENT(M, FIX) EVENT(FIX, M) EVENT(MTE3, MTE2) EVENT(MTE2, MTE3)      \
    EVENT(S, V) EVENT(V, S) EVENT(S, MTE2) EVENT(MTE2, S) EVENT(S, MTE3) EVENT(MTE3, S) EVENT(MTE2, FIX)              \
    EVENT(FIX, MTE2) EVENT(FIX, S) EVENT(M, S) EVENT(FIX, MTE3) EVENT(MTE1, FIX) EVENT(FIX, MTE1) EVENT(FIX, FIX)

#define NEONEXT_TWIN_EVENT_NAME(SOURCE, TARGET) SOURCE##_##TARGET,
enum class HardEvent : uint8_t { NEONEXT_TWIN_EVENTS(NEONEXT_TWIN_EVENT_NAME) MAX };
#undef NEONEXT_TWIN_EVENT_NAME

using TEventID = int8_t;
using TBufHandle = uint8_t*;
using TTagType = int32_t;

enum class MaskMode : uint8_t { NORMAL = 0, COUNTER };
enum class RoundMode : uint8_t { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class CMPMODE : uint8_t { LT = 0, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR = 0, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class ReduceMode : uint8_t { REDUCE_MAX = 0, REDUCE_MIN, REDUCE_SUM };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class CacheMode { CACHE_MODE_DISABLE = 0, CACHE_MODE_NORMAL = 1, CACHE_MODE_LAST = 2, CACHE_MODE_PERSISTENT = 4 };
enum class CacheRwMode { READ = 1, WRITE = 2, RW = 3 };
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE = 0, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL = 0, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
enum class TBufState : uint8_t { FREE = 0, OCCUPIED, ENQUE, DEQUE };
enum class DataFormat : uint8_t { ND = 0, NZ, NCHW, NC1HWC0, NHWC, NCDHW, NDC1HWC0, FRACTAL_Z_3D };
enum class MemDsbT : uint8_t { ALL = 0, DDR, UB, SEQ };
enum class PaddingMode : uint8_t { Normal = 0, Compact };

constexpr uint64_t MASK_PLACEHOLDER = 0;
constexpr uint32_t ONE_BLK_SIZE = 32;
constexpr int32_t ONE_REPEAT_BYTE_SIZE = 256;
constexpr int32_t DEFAULT_C0_SIZE = 32;
constexpr int32_t DEFAULT_BLK_NUM = 8;
constexpr uint8_t DEFAULT_BLK_STRIDE = 1;
constexpr uint8_t DEFAULT_REPEAT_STRIDE = 8;
constexpr uint16_t DEFAULT_DATA_COPY_NBURST = 1;
constexpr uint16_t DEFAULT_DATA_COPY_STRIDE = 0;
constexpr int32_t DEFAULT_BLOCK_SIZE = 256;
constexpr uint64_t FULL_MASK = ~uint64_t{0};
constexpr TEventID INVALID_TEVENTID = -1;
constexpr int32_t BYTE_PER_BLK = 32;

struct TQueConfig {
    bool nd2nz = false;
    bool nz2nd = false;
    bool scmBlockGroup = false;
    uint32_t bufferLen = 0;
    uint32_t bufferNumber = 0;
    uint32_t consumerSize = 0;
    TPosition consumer[8] = {};
    bool enableStaticEvtId = false;
    bool enableLoopQueue = false;
};

}  // namespace AscendC

namespace neonext_twin {

constexpr Pipe pipe_of(pipe_t pipe)
{
    switch (pipe) {
        case PIPE_V: return pipe_v;
        case PIPE_M: return pipe_m;
        case PIPE_MTE1: return pipe_mte1;
        case PIPE_MTE2: return pipe_mte2;
        case PIPE_MTE3: return pipe_mte3;
        case PIPE_FIX: return pipe_fix;
        default: return pipe_s;
    }
}

struct PipePair {
    Pipe source;
    Pipe target;
};

constexpr PipePair pipes_of(AscendC::HardEvent event)
{
#define NEONEXT_TWIN_EVENT_PIPES(SOURCE, TARGET) PipePair{pipe_of(PIPE_##SOURCE), pipe_of(PIPE_##TARGET)},
    constexpr PipePair pairs[] = {NEONEXT_TWIN_EVENTS(NEONEXT_TWIN_EVENT_PIPES)};
#undef NEONEXT_TWIN_EVENT_PIPES
    return pairs[static_cast<int>(event)];
}

/// An integer member or argument that the device keeps in the narrow type T. The real headers truncate silently; this
/// keeps the value as it was given, so that an instruction can reject one that does not fit.
template <typename T>
class Field {
public:
    constexpr Field() = default;
    template <typename U, typename = std::enable_if_t<std::is_integral_v<U> || std::is_enum_v<U>>>
    constexpr Field(U value)
        : value_(sizeof(U) == 8 && std::is_unsigned_v<U> && static_cast<uint64_t>(value) > too_large
                     ? static_cast<int64_t>(too_large)
                     : static_cast<int64_t>(value))
    {}

    template <typename U>
    constexpr Field(const Field<U>& other) : value_(other.given())
    {}

    constexpr operator T() const { return static_cast<T>(value_); }
    constexpr int64_t given() const { return value_; }
    constexpr bool fits() const
    {
        return value_ >= static_cast<int64_t>(std::numeric_limits<T>::min()) &&
               value_ <= static_cast<int64_t>(std::numeric_limits<T>::max());
    }

    Field& operator+=(int64_t other) { return *this = Field(value_ + other); }
    Field& operator-=(int64_t other) { return *this = Field(value_ - other); }
    Field& operator*=(int64_t other) { return *this = Field(value_ * other); }
    Field& operator++() { return *this += 1; }

    /// Return the value; reject one that does not fit, by the field's name.
    T checked(const char* name, Rule rule = Rule::stride) const
    {
        if (!fits()) {
            machine.reject(rule, "%s is %lld, but its field holds %lld to %lld and would truncate it", name,
                           static_cast<long long>(value_), static_cast<long long>(std::numeric_limits<T>::min()),
                           static_cast<long long>(std::numeric_limits<T>::max()));
        }
        return static_cast<T>(value_);
    }

private:
    static constexpr uint64_t too_large = uint64_t{1} << 62;
    int64_t value_ = 0;
};

}  // namespace neonext_twin
