// Runs a model in MindSpore Lite. The functions are called by process.py, from one thread, for one model at a time.
// Each returns 0, or 1 with the reason in `error`.
#include <cstdint>
#include <memory>
#include <vector>

#include "include/api/context.h"
#include "include/api/model.h"
#include "text.h"

using mindspore::MSTensor;

namespace {
std::unique_ptr<mindspore::Model> model;
std::vector<MSTensor> inputs, outputs;
constexpr int kMaxRank = 8;

std::vector<MSTensor> &tensors(int of_outputs) { return of_outputs ? outputs : inputs; }
}  // namespace

extern "C" {
int neonext_load(const char *path, int threads, char *error, int size) {
  auto context = std::make_shared<mindspore::Context>();
  context->SetThreadNum(threads);
  context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  model = std::make_unique<mindspore::Model>();
  const auto status = model->Build(std::string(path), mindspore::kMindIR_Lite, context);
  if (!status.IsOk()) return fail(status.ToString(), error, size);
  inputs = model->GetInputs();
  outputs = model->GetOutputs();
  return 0;
}

int neonext_count(int of_outputs) { return static_cast<int>(tensors(of_outputs).size()); }

// Write type, format, rank and dimensions to `values`, 3 + 8 numbers; return 1 if there are more dimensions.
int neonext_describe(int of_outputs, int index, char *name, int name_size, int64_t *values) {
  const auto &tensor = tensors(of_outputs)[index];
  const auto &shape = tensor.Shape();
  if (shape.size() > kMaxRank) return 1;
  copy_text(tensor.Name(), name, name_size);
  values[0] = static_cast<int64_t>(tensor.DataType());
  values[1] = static_cast<int64_t>(tensor.format());
  values[2] = static_cast<int64_t>(shape.size());
  std::copy(shape.begin(), shape.end(), values + 3);
  return 0;
}

int neonext_resize(int index, const int64_t *shape, int rank, char *error, int size) {
  std::vector<std::vector<int64_t>> shapes;
  for (const auto &tensor : inputs) shapes.push_back(tensor.Shape());
  shapes[index].assign(shape, shape + rank);
  const auto status = model->Resize(inputs, shapes);
  if (!status.IsOk()) return fail(status.ToString(), error, size);
  inputs = model->GetInputs();
  return 0;
}

int neonext_copy_in(int index, const void *data, int64_t bytes, char *error, int size) {
  auto &tensor = inputs[index];
  void *place = tensor.MutableData();
  if (place == nullptr || tensor.DataSize() != static_cast<size_t>(bytes)) {
    return fail("expected " + std::to_string(tensor.DataSize()) + " bytes, got " + std::to_string(bytes), error, size);
  }
  std::memcpy(place, data, bytes);
  return 0;
}

int neonext_run(char *error, int size) {
  const auto status = model->Predict(inputs, &outputs);
  return status.IsOk() ? 0 : fail(status.ToString(), error, size);
}

int neonext_copy_out(int index, void *data, int64_t bytes, char *error, int size) {
  auto &tensor = outputs[index];
  const void *place = tensor.Data().get();
  if (place == nullptr || tensor.DataSize() != static_cast<size_t>(bytes)) {
    return fail("the output has " + std::to_string(tensor.DataSize()) + " bytes, expected " + std::to_string(bytes),
                error, size);
  }
  std::memcpy(data, place, bytes);
  return 0;
}
}
