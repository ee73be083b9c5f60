// Classify images with an OM file through AscendCL: the smallest program to build a product from.
//
//   classify MODEL.om INPUT.bin [--labels FILE] [--device N] [--loop N]
//
// INPUT.bin holds the bytes of one image or of a whole batch, as the file takes them: float32 N,C,H,W of normalized
// images (work/inputs/float32_000.bin of the kit), or uint8 N,H,W,C of frames for a file with AIPP (work/inputs/frames_000.bin).
// It prints the five best classes of every image and the time of a run. Exit codes: 0 done, 1 error, 2 wrong usage.
//
// The order of the calls is that of CANN's documentation: init, device, context; load, describe; a dataset of device
// buffers for each side; copy in, execute, copy out; and everything backwards.

#include <acl/acl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr size_t kBest = 5;
// The name that ATC gives to the extra input of a file with several batch sizes.
constexpr char kBatchInput[] = "ascend_mbatch_shape_data";

void Check(aclError code, const std::string &call) {
    if (code != ACL_SUCCESS) {
        const char *message = aclGetRecentErrMsg();
        throw std::runtime_error(call + " failed with " + std::to_string(code) + (message ? std::string(": ") + message : ""));
    }
}

// Calls that free what others took, run in reverse order at the end, whatever happens.
class Undo {
public:
    ~Undo() {
        for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
            (*call)();
        }
    }
    void Later(std::function<void()> call) { calls_.push_back(std::move(call)); }

private:
    std::vector<std::function<void()>> calls_;
};

struct Buffer {
    void *address;
    size_t size;
};

class Model {
public:
    Model(const std::string &path, int device) {
        Check(aclInit(nullptr), "aclInit");
        undo_.Later([] { aclFinalize(); });
        Check(aclrtSetDevice(device), "aclrtSetDevice");
        undo_.Later([device] { aclrtResetDevice(device); });
        aclrtContext context = nullptr;
        Check(aclrtCreateContext(&context, device), "aclrtCreateContext");
        undo_.Later([context] { aclrtDestroyContext(context); });
        Check(aclmdlLoadFromFile(path.c_str(), &model_), "aclmdlLoadFromFile");
        undo_.Later([this] { aclmdlUnload(model_); });
        description_ = aclmdlCreateDesc();
        undo_.Later([this] { aclmdlDestroyDesc(description_); });
        Check(aclmdlGetDesc(description_, model_), "aclmdlGetDesc");
        for (size_t i = 0; i < aclmdlGetNumInputs(description_); ++i) {
            inputs_.push_back(Add(input_set_, aclmdlGetInputSizeByIndex(description_, i)));
        }
        for (size_t i = 0; i < aclmdlGetNumOutputs(description_); ++i) {
            outputs_.push_back(Add(output_set_, aclmdlGetOutputSizeByIndex(description_, i)));
        }
        aclmdlIODims dims{};
        Check(aclmdlGetOutputDims(description_, 0, &dims), "aclmdlGetOutputDims");
        if (dims.dimCount != 2 || dims.dims[0] < 1 || dims.dims[1] < 1) {
            throw std::runtime_error(path + ": expected an output of N x classes");
        }
        batch_ = static_cast<size_t>(dims.dims[0]);
        classes_ = static_cast<size_t>(dims.dims[1]);
        if (inputs_.size() > 1) {
            size_t index = 0;
            Check(aclmdlGetInputIndexByName(description_, kBatchInput, &index), "aclmdlGetInputIndexByName");
            Check(aclmdlSetDynamicBatchSize(model_, input_set_, index, batch_), "aclmdlSetDynamicBatchSize");
        }
    }

    size_t Batch() const { return batch_; }
    size_t ImageBytes() const { return inputs_[0].size / batch_; }

    // Copies a whole batch in, computes, and copies the logits out: batch x classes.
    std::vector<float> Run(const std::vector<char> &images) {
        const Buffer &in = inputs_[0], &out = outputs_[0];
        Check(aclrtMemcpy(in.address, in.size, images.data(), images.size(), ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
        Check(aclmdlExecute(model_, input_set_, output_set_), "aclmdlExecute");
        std::vector<char> bytes(out.size);
        Check(aclrtMemcpy(bytes.data(), bytes.size(), out.address, out.size, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
        std::vector<float> logits(batch_ * classes_);
        const aclDataType type = aclmdlGetOutputDataType(description_, 0);
        const size_t width = type == ACL_FLOAT ? 4 : type == ACL_FLOAT16 ? 2 : 0;
        if (width == 0 || logits.size() * width > bytes.size()) {
            throw std::runtime_error("the output is not float32 or float16 of N x classes");
        }
        for (size_t i = 0; i < logits.size(); ++i) {
            if (type == ACL_FLOAT) {
                std::memcpy(&logits[i], &bytes[i * width], width);
            } else {
                aclFloat16 half;
                std::memcpy(&half, &bytes[i * width], width);
                logits[i] = aclFloat16ToFloat(half);
            }
        }
        return logits;
    }

    size_t Classes() const { return classes_; }

private:
    // Adds device memory of a size to a dataset, which is made on first use.
    Buffer Add(aclmdlDataset *&set, size_t size) {
        if (set == nullptr) {
            set = aclmdlCreateDataset();
            undo_.Later([set] { aclmdlDestroyDataset(set); });
        }
        void *address = nullptr;
        Check(aclrtMalloc(&address, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
        undo_.Later([address] { aclrtFree(address); });
        aclDataBuffer *buffer = aclCreateDataBuffer(address, size);
        undo_.Later([buffer] { aclDestroyDataBuffer(buffer); });
        Check(aclmdlAddDatasetBuffer(set, buffer), "aclmdlAddDatasetBuffer");
        return {address, size};
    }

    uint32_t model_ = 0;
    aclmdlDesc *description_ = nullptr;
    aclmdlDataset *input_set_ = nullptr, *output_set_ = nullptr;
    std::vector<Buffer> inputs_, outputs_;
    size_t batch_ = 0, classes_ = 0;
    Undo undo_;
};

std::vector<char> ReadFile(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(path + ": cannot be read");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> ReadLabels(const std::string &path) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(path + ": cannot be read");
    }
    std::vector<std::string> labels;
    for (std::string line; std::getline(file, line);) {
        labels.push_back(line);
    }
    return labels;
}

// Prints the best classes of one image with their probabilities.
void Print(const float *logits, size_t classes, const std::vector<std::string> &labels) {
    std::vector<size_t> order(classes);
    std::iota(order.begin(), order.end(), size_t{0});
    const size_t best = std::min(kBest, classes);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(best), order.end(),
                      [logits](size_t a, size_t b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (size_t i = 0; i < classes; ++i) {
        sum += std::exp(static_cast<double>(logits[i]) - logits[order[0]]);
    }
    for (size_t i = 0; i < best; ++i) {
        const size_t index = order[i];
        const double share = std::exp(static_cast<double>(logits[index]) - logits[order[0]]) / sum;
        std::cout << "  " << 100 * share << " %  " << (index < labels.size() ? labels[index] : std::to_string(index)) << "\n";
    }
}

int Classify(const std::string &path, const std::string &input, const std::string &label_file, int device, int loop) {
    std::vector<std::string> labels;
    if (!label_file.empty()) {
        labels = ReadLabels(label_file);
    }
    std::vector<char> images = ReadFile(input);
    Model model(path, device);
    const size_t image = model.ImageBytes();
    const size_t count = images.size() / image;
    if (count == 0 || images.size() % image != 0 || count > model.Batch()) {
        throw std::runtime_error(input + ": " + std::to_string(images.size()) + " bytes (expected 1 to " +
                                 std::to_string(model.Batch()) + " images of " + std::to_string(image) + ")");
    }
    images.resize(model.Batch() * image);
    std::vector<float> logits = model.Run(images);
    for (size_t i = 0; i < count; ++i) {
        std::cout << "image " << i << "\n";
        Print(&logits[i * model.Classes()], model.Classes(), labels);
    }
    std::vector<double> times;
    for (int i = 0; i < loop; ++i) {
        const auto start = std::chrono::steady_clock::now();
        model.Run(images);
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    if (!times.empty()) {
        std::sort(times.begin(), times.end());
        std::cout << "time  " << times[times.size() / 2] << " ms a run of batch " << model.Batch()
                  << ", copies included (median of " << times.size() << ")\n";
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    std::vector<std::string> files;
    std::string labels;
    int device = 0, loop = 100;
    for (size_t i = 0; i < words.size(); ++i) {
        const bool has_value = i + 1 < words.size();
        if (words[i] == "--labels" && has_value) {
            labels = words[++i];
        } else if (words[i] == "--device" && has_value) {
            device = std::atoi(words[++i].c_str());
        } else if (words[i] == "--loop" && has_value) {
            loop = std::atoi(words[++i].c_str());
        } else {
            files.push_back(words[i]);
        }
    }
    if (files.size() != 2 || files[0].rfind("--", 0) == 0 || files[1].rfind("--", 0) == 0) {
        std::cerr << "usage: classify MODEL.om INPUT.bin [--labels FILE] [--device N] [--loop N]\n";
        return 2;
    }
    try {
        return Classify(files[0], files[1], labels, device, loop);
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
