// A stand-in for libascendcl, for programs of kit/cpp: one model, whose ONNX file Python runs in onnxruntime
// (tests/stand_ins/run_om.py, found by STAND_IN_RUN). It ends the program where something is not freed, or freed twice.
#include "acl/acl.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

struct aclmdlDesc {};
struct aclDataBuffer {
    void *data;
    size_t size;
};
struct aclmdlDataset {
    std::vector<aclDataBuffer *> buffers;
};

namespace {
std::map<const void *, const char *> live;
std::string path;
std::vector<size_t> inputs, outputs;
long batch = 0, classes = 0;
int stage = 0;

template <typename T>
T *New(T *thing, const char *what) {
    live[thing] = what;
    return thing;
}

aclError Drop(const void *thing) {
    if (live.erase(thing) == 0) {
        std::fprintf(stderr, "stand-in: freed twice\n");
        std::abort();
    }
    return 0;
}

std::string Python(const std::string &arguments) {
    std::string text, command = std::string(std::getenv("STAND_IN_RUN")) + " '" + path + "' " + arguments;
    FILE *pipe = popen(command.c_str(), "r");
    char part[256];
    while (pipe != nullptr && std::fgets(part, sizeof(part), pipe) != nullptr) {
        text += part;
    }
    return pclose(pipe) == 0 ? text : "";
}
}  // namespace

extern "C" {
aclError aclInit(const char *) { return stage++ == 0 ? 0 : 100002; }
aclError aclFinalize() {
    for (const auto &thing : live) {
        std::fprintf(stderr, "stand-in: %s is left\n", thing.second);
        std::abort();
    }
    return 0;
}
const char *aclGetRecentErrMsg() { return "a message of the stand-in"; }
float aclFloat16ToFloat(aclFloat16 value) {
    const int exponent = (value >> 10) & 31, fraction = value & 1023;
    const float size = exponent ? std::ldexp(1024.0F + fraction, exponent - 25) : std::ldexp(static_cast<float>(fraction), -24);
    return value & 0x8000 ? -size : size;
}
aclError aclrtSetDevice(int32_t device) { return device == 0 ? 0 : 107001; }
aclError aclrtResetDevice(int32_t) { return 0; }
aclError aclrtCreateContext(aclrtContext *context, int32_t) {
    *context = New(new int, "a context");
    return 0;
}
aclError aclrtDestroyContext(aclrtContext context) { return Drop(context); }
aclError aclrtMalloc(void **address, size_t size, aclrtMemMallocPolicy) {
    *address = New(std::calloc(size, 1), "memory");
    return 0;
}
aclError aclrtFree(void *address) { return Drop(address); }
aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t count, aclrtMemcpyKind) {
    if (count > room) {
        return 100000;
    }
    std::memcpy(to, from, count);
    return 0;
}
aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) { return New(new aclDataBuffer{data, size}, "a buffer"); }
aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) { return Drop(buffer); }
aclmdlDataset *aclmdlCreateDataset() { return New(new aclmdlDataset, "a dataset"); }
aclError aclmdlDestroyDataset(const aclmdlDataset *set) { return Drop(set); }
aclError aclmdlAddDatasetBuffer(aclmdlDataset *set, aclDataBuffer *buffer) {
    set->buffers.push_back(buffer);
    return 0;
}
aclError aclmdlLoadFromFile(const char *file, uint32_t *model) {
    path = file;
    size_t in = 0, out = 0, extra = 0;
    const std::string text = Python("--describe");
    if (std::sscanf(text.c_str(), "%zu %zu %zu %ld %ld", &in, &out, &extra, &batch, &classes) != 5) {
        return 545001;
    }
    inputs = extra ? std::vector<size_t>{in, extra} : std::vector<size_t>{in};
    outputs = {out};
    *model = 1;
    New(&path, "a model");
    return 0;
}
aclError aclmdlUnload(uint32_t) { return Drop(&path); }
aclmdlDesc *aclmdlCreateDesc() { return New(new aclmdlDesc, "a description"); }
aclError aclmdlDestroyDesc(aclmdlDesc *desc) { return Drop(desc); }
aclError aclmdlGetDesc(aclmdlDesc *, uint32_t model) { return model == 1 ? 0 : 100000; }
size_t aclmdlGetNumInputs(aclmdlDesc *) { return inputs.size(); }
size_t aclmdlGetNumOutputs(aclmdlDesc *) { return outputs.size(); }
size_t aclmdlGetInputSizeByIndex(aclmdlDesc *, size_t index) { return inputs.at(index); }
size_t aclmdlGetOutputSizeByIndex(aclmdlDesc *, size_t index) { return outputs.at(index); }
aclError aclmdlGetOutputDims(const aclmdlDesc *, size_t, aclmdlIODims *dims) {
    dims->dimCount = 2;
    dims->dims[0] = batch;
    dims->dims[1] = classes;
    return 0;
}
aclDataType aclmdlGetOutputDataType(const aclmdlDesc *, size_t) { return ACL_FLOAT; }
aclError aclmdlGetInputIndexByName(const aclmdlDesc *, const char *name, size_t *index) {
    *index = 1;
    return inputs.size() > 1 && std::string(name) == "ascend_mbatch_shape_data" ? 0 : 100000;
}
aclError aclmdlSetDynamicBatchSize(uint32_t, aclmdlDataset *, size_t, uint64_t size) {
    return static_cast<long>(size) == batch ? 0 : 100000;
}
aclError aclmdlExecute(uint32_t, const aclmdlDataset *in, aclmdlDataset *out) {
    const std::string to = "/tmp/acl_stand_in." + std::to_string(getpid());
    std::ofstream(to, std::ios::binary).write(static_cast<char *>(in->buffers[0]->data), static_cast<long>(in->buffers[0]->size));
    if (Python("--input " + to + " --output " + to) != "done\n") {
        return 507018;
    }
    std::ifstream(to, std::ios::binary).read(static_cast<char *>(out->buffers[0]->data), static_cast<long>(out->buffers[0]->size));
    std::remove(to.c_str());
    return 0;
}
}
