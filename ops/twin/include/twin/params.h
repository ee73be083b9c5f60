// Parameter structures of the public functions. Their fields keep a value that does not fit, for the error that names
// it.
#pragma once

#include "types.h"

namespace AscendC {

using neonext_twin::Field;

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(Field<uint8_t> dstBlkStrideIn, Field<uint8_t> src0BlkStrideIn, Field<uint8_t> src1BlkStrideIn,
                       Field<uint8_t> dstRepStrideIn, Field<uint8_t> src0RepStrideIn, Field<uint8_t> src1RepStrideIn)
        : dstBlkStride(dstBlkStrideIn),
          src0BlkStride(src0BlkStrideIn),
          src1BlkStride(src1BlkStrideIn),
          dstRepStride(dstRepStrideIn),
          src0RepStride(src0RepStrideIn),
          src1RepStride(src1RepStrideIn)
    {}

    uint32_t blockNumber = DEFAULT_BLK_NUM;
    Field<uint8_t> dstBlkStride = DEFAULT_BLK_STRIDE;
    Field<uint8_t> src0BlkStride = DEFAULT_BLK_STRIDE;
    Field<uint8_t> src1BlkStride = DEFAULT_BLK_STRIDE;
    Field<uint8_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
    Field<uint8_t> src0RepStride = DEFAULT_REPEAT_STRIDE;
    Field<uint8_t> src1RepStride = DEFAULT_REPEAT_STRIDE;
    bool repeatStrideMode = false;
    bool strideSizeMode = false;
};

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(Field<uint16_t> dstBlkStrideIn, Field<uint16_t> srcBlkStrideIn, Field<uint8_t> dstRepStrideIn,
                      Field<uint8_t> srcRepStrideIn, bool halfBlockIn = false)
        : dstBlkStride(dstBlkStrideIn),
          srcBlkStride(srcBlkStrideIn),
          dstRepStride(dstRepStrideIn),
          srcRepStride(srcRepStrideIn),
          halfBlock(halfBlockIn)
    {}

    uint32_t blockNumber = DEFAULT_BLK_NUM;
    Field<uint16_t> dstBlkStride = DEFAULT_BLK_STRIDE;
    Field<uint16_t> srcBlkStride = DEFAULT_BLK_STRIDE;
    Field<uint8_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
    Field<uint8_t> srcRepStride = DEFAULT_REPEAT_STRIDE;
    bool repeatStrideMode = false;
    bool strideSizeMode = false;
    bool halfBlock = false;
};

struct DataCopyParams {
    DataCopyParams() {}
    DataCopyParams(Field<uint16_t> count, Field<uint16_t> len, Field<uint16_t> srcStrideIn,
                   Field<uint16_t> dstStrideIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn)
    {}

    Field<uint16_t> blockCount = DEFAULT_DATA_COPY_NBURST;
    Field<uint16_t> blockLen = 0;
    union {
        Field<uint16_t> srcGap = 0;
        Field<uint16_t> srcStride;
    };
    union {
        Field<uint16_t> dstGap = 0;
        Field<uint16_t> dstStride;
    };
};

struct DataCopyExtParams {
    DataCopyExtParams() = default;
    DataCopyExtParams(Field<uint16_t> count, Field<uint32_t> len, Field<uint32_t> srcStrideIn,
                      Field<uint32_t> dstStrideIn, Field<uint32_t> rsvIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn), rsv(rsvIn)
    {}

    Field<uint16_t> blockCount = DEFAULT_DATA_COPY_NBURST;
    Field<uint32_t> blockLen = 0;
    Field<uint32_t> srcStride = DEFAULT_DATA_COPY_STRIDE;
    Field<uint32_t> dstStride = DEFAULT_DATA_COPY_STRIDE;
    Field<uint32_t> rsv = 0;
};

struct DataCopyPadParams {
    DataCopyPadParams() = default;
    DataCopyPadParams(bool isPadValue, Field<uint8_t> leftPadValue, Field<uint8_t> rightPadValue, uint64_t padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue), paddingValue(padValue)
    {}

    bool isPad = false;
    Field<uint8_t> leftPadding = 0;
    Field<uint8_t> rightPadding = 0;
    uint64_t paddingValue = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool isPadValue, Field<uint8_t> leftPadValue, Field<uint8_t> rightPadValue, T padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue), paddingValue(padValue)
    {}

    bool isPad = false;
    Field<uint8_t> leftPadding = 0;
    Field<uint8_t> rightPadding = 0;
    T paddingValue = T(0);
};

struct CopyRepeatParams {
    CopyRepeatParams() = default;
    CopyRepeatParams(Field<uint16_t> dstStrideIn, Field<uint16_t> srcStrideIn, Field<uint16_t> dstRepeatSizeIn,
                     Field<uint16_t> srcRepeatSizeIn)
        : dstStride(dstStrideIn), srcStride(srcStrideIn), dstRepeatSize(dstRepeatSizeIn), srcRepeatSize(srcRepeatSizeIn)
    {}

    Field<uint16_t> dstStride = 1;
    Field<uint16_t> srcStride = 1;
    Field<uint16_t> dstRepeatSize = DEFAULT_REPEAT_STRIDE;
    Field<uint16_t> srcRepeatSize = DEFAULT_REPEAT_STRIDE;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(Field<uint16_t> dstBlkStrideIn, Field<uint16_t> dstRepStrideIn)
        : dstRepStride(dstRepStrideIn), dstBlkStride(dstBlkStrideIn)
    {}

    uint32_t blockNumber = DEFAULT_BLK_NUM;
    Field<uint16_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
    Field<uint16_t> dstBlkStride = DEFAULT_BLK_STRIDE;
};

struct GatherRepeatParams {
    GatherRepeatParams() = default;
    GatherRepeatParams(Field<uint8_t> dstBlkStrideIn, Field<uint8_t> dstRepStrideIn)
        : dstRepStride(dstRepStrideIn), dstBlkStride(dstBlkStrideIn)
    {}

    uint32_t blockNumber = DEFAULT_BLK_NUM;
    Field<uint16_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
    Field<uint8_t> dstBlkStride = DEFAULT_BLK_STRIDE;
};

struct GatherMaskParams {
    GatherMaskParams() = default;
    GatherMaskParams(Field<uint8_t> src0BlockStrideIn, Field<uint16_t> repeatTimesIn,
                     Field<uint16_t> src0RepeatStrideIn, Field<uint8_t> src1RepeatStrideIn)
        : src0BlockStride(src0BlockStrideIn),
          repeatTimes(repeatTimesIn),
          src0RepeatStride(src0RepeatStrideIn),
          src1RepeatStride(src1RepeatStrideIn)
    {}

    Field<uint8_t> src0BlockStride = DEFAULT_BLK_STRIDE;
    Field<uint16_t> repeatTimes = 0;
    Field<uint16_t> src0RepeatStride = DEFAULT_REPEAT_STRIDE;
    Field<uint8_t> src1RepeatStride = DEFAULT_REPEAT_STRIDE;
};

struct TransDataTo5HDParams {
    TransDataTo5HDParams() = default;
    TransDataTo5HDParams(bool dstHighHalfIn, bool srcHighHalfIn, Field<uint8_t> repeatTimesIn,
                         Field<uint16_t> dstRepStrideIn, Field<uint16_t> srcRepStrideIn)
        : dstHighHalf(dstHighHalfIn),
          srcHighHalf(srcHighHalfIn),
          repeatTimes(repeatTimesIn),
          dstRepStride(dstRepStrideIn),
          srcRepStride(srcRepStrideIn)
    {}

    bool dstHighHalf = false;
    bool srcHighHalf = false;
    Field<uint8_t> repeatTimes = 1;
    Field<uint16_t> dstRepStride = 0;
    Field<uint16_t> srcRepStride = 0;
};

}  // namespace AscendC
