// The surroundings of a kernel: block index, tiling, assertions, log, and the functions that the simulator lacks.
#pragma once

#include "cores.h"
#include "pipe.h"
#include "vector.h"

namespace neonext_twin {

// The struct that GET_TILING_DATA reads, unless REGISTER_TILING_DEFAULT names another one for the scope it stands in.
struct NoTiling {};

[[noreturn, gnu::cold]] inline void stop_missing(const char* name, Where at)
{
    machine.enter(name, at);
    machine.stop(Rule::not_in_twin,
                 "the simulator does not support this: cores run one after another, vector units only");
}

/// Take the type of the kernel's task. With KERNEL_TYPE_MIX_VECTOR_CORE the 310P starts blocks beyond its AI cores on
/// its vector cores. CANN's function for the values of the macro raises an error on 3002.
inline void take_task_type(const char* name, KernelMetaType type, Where at)
{
    machine.enter("KERNEL_TASK_TYPE", at);
    if (__NPU_ARCH__ == 3002) {
        machine.reject(Rule::not_on_arch, "__NPU_ARCH__ 3002 (%s) has no task types (%s)", machine.soc.c_str(), name);
    }
    if (__NPU_ARCH__ == 2002 && type == KERNEL_TYPE_MIX_VECTOR_CORE) {
        machine.mixed = machine.blocks > machine.ai_cores;
        machine.set_kind(machine.core >= machine.ai_cores);
    }
}

[[gnu::format(printf, 3, 4), gnu::cold]] inline void failed_assert(const char* condition, Where at,
                                                                  const char* format = "", ...)
{
    char text[512] = "";
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    machine.enter("assert", at);
    machine.reject(Rule::kernel_assert, "(%s) is false. %s", condition, text);
}

}  // namespace neonext_twin

#ifndef NEONEXT_TWIN_TILING
#define NEONEXT_TWIN_TILING neonext_twin::NoTiling
#else
struct NEONEXT_TWIN_TILING;
#endif

using NeonextTwinDefaultTiling = NEONEXT_TWIN_TILING;

#define REGISTER_TILING_DEFAULT(STRUCT) using NeonextTwinDefaultTiling [[maybe_unused]] = STRUCT
#define REGISTER_TILING_FOR_TILINGKEY(EXPRESSION, STRUCT)
#define GET_TILING_DATA_WITH_STRUCT(STRUCT, NAME, ADDRESS) \
    STRUCT NAME;                                           \
    std::memcpy(static_cast<void*>(&NAME), ADDRESS, sizeof(STRUCT))
#define GET_TILING_DATA(NAME, ADDRESS) GET_TILING_DATA_WITH_STRUCT(NeonextTwinDefaultTiling, NAME, ADDRESS)
#define GET_TILING_DATA_MEMBER(STRUCT, MEMBER, NAME, ADDRESS)                          \
    decltype(STRUCT::MEMBER) NAME;                                                     \
    std::memcpy(static_cast<void*>(&NAME), (ADDRESS) + offsetof(STRUCT, MEMBER), sizeof(NAME))
#define GET_TILING_DATA_PTR_WITH_STRUCT(STRUCT, NAME, ADDRESS) \
    STRUCT twin_##NAME;                                        \
    std::memcpy(static_cast<void*>(&twin_##NAME), ADDRESS, sizeof(STRUCT)); \
    STRUCT* NAME = &twin_##NAME
#define COPY_TILING_WITH_STRUCT(STRUCT, ADDRESS, TARGET) std::memcpy(TARGET, ADDRESS, sizeof(STRUCT))

#define TILING_KEY_IS(KEY) (neonext_twin::machine.tiling_key == static_cast<uint64_t>(KEY))
// A kernel that compares it in `#if` is compiled for one key: defines={"TILING_KEY_VAR": key}.
#ifndef TILING_KEY_VAR
#define TILING_KEY_VAR (neonext_twin::machine.tiling_key)
#endif

#define KERNEL_TASK_TYPE_DEFAULT(VALUE) neonext_twin::take_task_type(#VALUE, VALUE, neonext_twin::Where::here())
#define KERNEL_TASK_TYPE(KEY, VALUE)        \
    do {                                    \
        if (TILING_KEY_IS(KEY)) {           \
            KERNEL_TASK_TYPE_DEFAULT(VALUE); \
        }                                   \
    } while (false)
#define ENABLE_DETERMINISTIC()

#define ASSERT(CONDITION)                                                                    \
    do {                                                                                     \
        if (!(CONDITION)) {                                                                  \
            neonext_twin::failed_assert(#CONDITION, neonext_twin::Where::here());            \
        }                                                                                    \
    } while (false)
#define ascendc_assert(CONDITION, ...)                                                                  \
    do {                                                                                                \
        if (!(CONDITION)) {                                                                             \
            neonext_twin::failed_assert(#CONDITION, neonext_twin::Where::here(), "" __VA_ARGS__);       \
        }                                                                                               \
    } while (false)
#define ASCENDC_ASSERT(CONDITION, BEHAVIOR) ASSERT(CONDITION)
#define KERNEL_LOG(LEVEL, ...)
#define KERNEL_ERROR 0

#define ASCEND_IS_AIV constexpr(true)
#define ASCEND_IS_AIC constexpr(false)
#define ASCEND_IS_NOT_AIV constexpr(false)
#define ASCEND_IS_NOT_AIC constexpr(true)

constexpr int AIV = 2;
constexpr int AIC = 1;
constexpr int MIX = 0;
constexpr int g_coreType = AIV;

inline int64_t get_block_idx() { return neonext_twin::machine.core; }
inline int64_t get_block_num() { return neonext_twin::machine.blocks; }
inline int64_t get_subblockid() { return 0; }
inline int64_t get_subblockdim() { return 1; }

// The compiler's built-in variables of the same meaning.
inline const struct {
    operator int64_t() const { return neonext_twin::machine.core; }
} block_idx;
inline const struct {
    operator int64_t() const { return neonext_twin::machine.blocks; }
} block_num;

template <typename... A>
inline void dcci(A...) {}

namespace AscendC {

inline int64_t GetBlockIdx() { return machine.core; }
inline int64_t GetBlockNum() { return machine.blocks; }
inline int64_t GetSubBlockIdx() { return 0; }
inline int64_t GetSubBlockNum() { return 1; }
inline int64_t GetTaskRatio() { return 1; }
inline int64_t GetTaskRation() { return 1; }  // the older spelling

template <typename T>
inline void WriteGmByPassDCache(__gm__ T* address, T value)
{
    *address = value;
}

template <typename T>
inline T ReadGmByPassDCache(__gm__ T* address)
{
    return *address;
}

/// Keep bits of the control register, which have no effect here.
template <int8_t startBit, int8_t endBit>
inline void SetCtrlSpr(int64_t value)
{
    static_assert(0 <= startBit && startBit <= endBit && endBit < 64, "bits 0 to 63");
    constexpr uint64_t bits = (~uint64_t{0} >> (63 - (endBit - startBit))) << startBit;
    machine.control = (machine.control & ~bits) | (static_cast<uint64_t>(value) << startBit & bits);
    machine.note("SetCtrlSpr: the simulator keeps the bits of the control register, but they have no effect");
}

template <int8_t startBit, int8_t endBit>
inline int64_t GetCtrlSpr()
{
    return static_cast<int64_t>(machine.control >> startBit & (~uint64_t{0} >> (63 - (endBit - startBit))));
}

template <int8_t startBit, int8_t endBit>
inline void ResetCtrlSpr()
{
    SetCtrlSpr<startBit, endBit>(0);
}

// Kernels that follow each other may overlap on a device; here each runs alone.
inline void SetNextTaskStart() {}
inline void WaitPreTaskEnd() {}

constexpr uint32_t DivCeil(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
constexpr uint32_t AlignUp(uint32_t a, uint32_t b) { return DivCeil(a, b) * b; }
constexpr int32_t CeilDivision(int32_t a, int32_t b) { return b == 0 ? 0 : (a + b - 1) / b; }
constexpr int16_t GetDataBlockSizeInBytes() { return ONE_BLK_SIZE; }
constexpr uint32_t GetUBSizeInBytes() { return 0; }
inline void GetArchVersion(uint32_t& coreVersion) { coreVersion = __NPU_ARCH__; }
inline int64_t GetSystemCycle() { return 0; }
inline int64_t GetProgramCounter() { return 0; }
inline __gm__ uint8_t* GetUserWorkspace(GM_ADDR workspace) { return workspace; }
inline __gm__ uint8_t* GetSysWorkSpacePtr() { return nullptr; }
inline void SetSysWorkspace(GM_ADDR) {}

inline void Trap(Where at = Where::here())
{
    machine.enter("Trap", at);
    machine.reject(Rule::kernel_assert, "the kernel called Trap");
}

inline void InitSocState() { machine.reset_modes(); }

template <typename T>
inline void SetAtomicAdd() { machine.atomic = neonext_twin::atomic_add; }
template <typename T>
inline void SetAtomicMax() { machine.atomic = neonext_twin::atomic_max; }
template <typename T>
inline void SetAtomicMin() { machine.atomic = neonext_twin::atomic_min; }
inline void SetAtomicNone() { machine.atomic = neonext_twin::atomic_none; }
inline void DisableDmaAtomic() { SetAtomicNone(); }

template <typename T, CacheLine line, DcciDst target = DcciDst::CACHELINE_ALL>
inline void DataCacheCleanAndInvalid(const GlobalTensor<T>&) {}

template <typename T, uint64_t = 0>
inline void DataCachePreload(const GlobalTensor<T>&, int64_t) {}

/// Functions of the 950 alone.
template <typename T>
inline void Interleave(const LocalTensor<T>&, const LocalTensor<T>&, const LocalTensor<T>&, const LocalTensor<T>&,
                       const int32_t, Where at = Where::here())
{
    machine.enter("Interleave", at);
    machine.reject(Rule::not_on_arch, "__NPU_ARCH__ %d (%s) has no Interleave", __NPU_ARCH__, machine.soc.c_str());
}

template <typename T>
inline void DeInterleave(const LocalTensor<T>& dst0, const LocalTensor<T>& dst1, const LocalTensor<T>& src0,
                         const LocalTensor<T>& src1, const int32_t count, Where at = Where::here())
{
    Interleave(dst0, dst1, src0, src1, count, at);
}

// Flags between cube and vector cores.
#define NEONEXT_TWIN_MISSING(TYPES, NAME, ...)                 \
    template <NEONEXT_TWIN_BARE TYPES>                         \
    inline void NAME(__VA_ARGS__ Where at = Where::here())     \
    {                                                          \
        neonext_twin::stop_missing(#NAME, at);                 \
    }
NEONEXT_TWIN_MISSING((uint8_t modeId, pipe_t pipe), CrossCoreSetFlag, uint16_t, )
NEONEXT_TWIN_MISSING((uint8_t modeId = 0, pipe_t pipe = PIPE_S), CrossCoreWaitFlag, uint16_t, )

/// The kernel's own log goes to standard error.
template <typename... A>
inline void printf([[maybe_unused]] const char* format, [[maybe_unused]] A... arguments)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
    std::fprintf(stderr, format, arguments...);
#pragma GCC diagnostic pop
}

template <typename... A>
inline void PRINTF(const char* format, A... arguments)
{
    printf(format, arguments...);
}

template <typename T>
inline void DumpTensor(const T&, uint32_t, uint32_t) {}

}  // namespace AscendC
