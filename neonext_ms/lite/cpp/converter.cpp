// Calls the converter of MindSpore Lite for process.py.
#include <memory>
#include <vector>

#include "include/api/dual_abi_helper.h"
#include "include/api/format.h"
#include "include/api/status.h"
#include "include/registry/converter_context.h"
#include "text.h"

namespace mindspore {
// The wheel has this class in libmindspore_converter.so, and no header of it. Its only member is a shared pointer.
class Converter {
 public:
  Converter();
  void SetInputFormat(Format format);
  void SetSaveType(ModelType type);
  void SetWeightFp16(bool half);
  Status Convert(converter::FmkType framework, const std::vector<char> &model, const std::vector<char> &output,
                 const std::vector<char> &weights);

 private:
  std::shared_ptr<void> data_;
};
}  // namespace mindspore

using mindspore::StringToChar;

// Convert an ONNX file; return 0, or 1 with the reason in `error`. The library adds `.ms` to the output's name.
extern "C" int neonext_convert(const char *model, const char *output, int half_weights, char *error, int size) {
  mindspore::Converter converter;
  converter.SetSaveType(mindspore::kMindIR_Lite);
  converter.SetInputFormat(mindspore::NCHW);
  converter.SetWeightFp16(half_weights != 0);
  const auto onnx = mindspore::converter::kFmkTypeOnnx;
  const auto status = converter.Convert(onnx, StringToChar(model), StringToChar(output), {});
  return status.IsOk() ? 0 : fail(status.ToString(), error, size);
}
