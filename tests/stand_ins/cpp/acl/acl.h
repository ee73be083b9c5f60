// The part of AscendCL that kit/cpp uses, for the stand-in library. Signatures as in the public headers (hicann/runtime
// and hicann/ge, include/external/acl).
#pragma once
#include <cstddef>
#include <cstdint>

using aclError = int;
using aclFloat16 = uint16_t;
using aclrtContext = void *;
constexpr aclError ACL_SUCCESS = 0;
enum aclDataType { ACL_FLOAT = 0, ACL_FLOAT16 = 1, ACL_UINT8 = 4 };
enum aclrtMemcpyKind { ACL_MEMCPY_HOST_TO_HOST, ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST };
enum aclrtMemMallocPolicy { ACL_MEM_MALLOC_HUGE_FIRST };
struct aclmdlDesc;
struct aclmdlDataset;
struct aclDataBuffer;
struct aclmdlIODims {
    char name[128];
    size_t dimCount;
    int64_t dims[128];
};

extern "C" {
aclError aclInit(const char *config);
aclError aclFinalize();
const char *aclGetRecentErrMsg();
float aclFloat16ToFloat(aclFloat16 value);
aclError aclrtSetDevice(int32_t device);
aclError aclrtResetDevice(int32_t device);
aclError aclrtCreateContext(aclrtContext *context, int32_t device);
aclError aclrtDestroyContext(aclrtContext context);
aclError aclrtMalloc(void **address, size_t size, aclrtMemMallocPolicy policy);
aclError aclrtFree(void *address);
aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t count, aclrtMemcpyKind kind);
aclDataBuffer *aclCreateDataBuffer(void *data, size_t size);
aclError aclDestroyDataBuffer(const aclDataBuffer *buffer);
aclmdlDataset *aclmdlCreateDataset();
aclError aclmdlDestroyDataset(const aclmdlDataset *set);
aclError aclmdlAddDatasetBuffer(aclmdlDataset *set, aclDataBuffer *buffer);
aclError aclmdlLoadFromFile(const char *path, uint32_t *model);
aclError aclmdlUnload(uint32_t model);
aclmdlDesc *aclmdlCreateDesc();
aclError aclmdlDestroyDesc(aclmdlDesc *desc);
aclError aclmdlGetDesc(aclmdlDesc *desc, uint32_t model);
size_t aclmdlGetNumInputs(aclmdlDesc *desc);
size_t aclmdlGetNumOutputs(aclmdlDesc *desc);
size_t aclmdlGetInputSizeByIndex(aclmdlDesc *desc, size_t index);
size_t aclmdlGetOutputSizeByIndex(aclmdlDesc *desc, size_t index);
aclError aclmdlGetOutputDims(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims);
aclDataType aclmdlGetOutputDataType(const aclmdlDesc *desc, size_t index);
aclError aclmdlGetInputIndexByName(const aclmdlDesc *desc, const char *name, size_t *index);
aclError aclmdlSetDynamicBatchSize(uint32_t model, aclmdlDataset *set, size_t index, uint64_t batch);
aclError aclmdlExecute(uint32_t model, const aclmdlDataset *inputs, aclmdlDataset *outputs);
}
