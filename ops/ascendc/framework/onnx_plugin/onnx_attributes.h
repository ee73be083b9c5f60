// A reader for the attributes of an ONNX node, in the text that CANN's ONNX parser passes to a plugin.
//
// That text is the JSON form of the repeated field `attribute` of a NodeProto, such as
//     {"attribute": [{"ints": [48, 48], "name": "channels", "type": 7}, {"i": 1, "name": "accumulate_fp32", "type":
//     2}]}
// CANN installs no JSON library for projects like this one, and one pass over the attributes is all that is needed.
#ifndef NEO_CELL_ONNX_ATTRIBUTES_H
#define NEO_CELL_ONNX_ATTRIBUTES_H

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace neo_cell_onnx {

// Values of AttributeProto.AttributeType.
enum AttributeType { TYPE_INT = 2, TYPE_INTS = 7 };

struct Attribute {
    int64_t type;
    int64_t i;
    std::vector<int64_t> ints;
};

class Reader {
public:
    explicit Reader(const std::string& text) : text_(text), at_(0), good_(true) {}

    // Read the attributes by name; return false if the text does not have the form above.
    bool Read(std::map<std::string, Attribute>& attributes)
    {
        Expect('{');
        if (String() != "attribute") {
            return false;
        }
        Expect(':');
        Expect('[');
        while (good_ && !Take(']')) {
            ReadOne(attributes);
            Take(',');
        }
        Expect('}');
        return good_;
    }

private:
    void ReadOne(std::map<std::string, Attribute>& attributes)
    {
        Attribute attribute = {0, 0, {}};
        std::string name;
        Expect('{');
        while (good_ && !Take('}')) {
            const std::string key = String();
            Expect(':');
            if (key == "name") {
                name = String();
            } else if (key == "type") {
                attribute.type = Integer();
            } else if (key == "i") {
                attribute.i = Integer();
            } else if (key == "ints") {
                Expect('[');
                while (good_ && !Take(']')) {
                    attribute.ints.push_back(Integer());
                    Take(',');
                }
            } else {
                Skip();
            }
            Take(',');
        }
        attributes[name] = attribute;
    }

    void Space()
    {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) {
            ++at_;
        }
    }

    bool Take(char c)
    {
        Space();
        if (at_ < text_.size() && text_[at_] == c) {
            ++at_;
            return true;
        }
        good_ = good_ && at_ < text_.size();
        return false;
    }

    void Expect(char c)
    {
        good_ = Take(c) && good_;
    }

    std::string String()
    {
        std::string value;
        Expect('"');
        while (at_ < text_.size() && text_[at_] != '"') {
            at_ += text_[at_] == '\\' ? 1 : 0;
            if (at_ < text_.size()) {
                value += text_[at_++];
            }
        }
        Expect('"');
        return value;
    }

    int64_t Integer()
    {
        Space();
        const char* start = text_.c_str() + at_;
        char* end = nullptr;
        const long long value = std::strtoll(start, &end, 10);
        good_ = good_ && end != start;
        at_ += static_cast<size_t>(end - start);
        return value;
    }

    // Skip a value of any type: newer versions of ONNX add fields that do not matter here.
    void Skip()
    {
        Space();
        if (at_ < text_.size() && text_[at_] == '"') {
            String();
            return;
        }
        int depth = 0;
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '"') {
                String();
                continue;
            }
            if (depth == 0 && (c == ',' || c == '}' || c == ']')) {
                return;
            }
            depth += c == '[' || c == '{' ? 1 : 0;
            depth -= c == ']' || c == '}' ? 1 : 0;
            ++at_;
        }
        good_ = false;
    }

    const std::string& text_;
    size_t at_;
    bool good_;
};

} // namespace neo_cell_onnx

#endif // NEO_CELL_ONNX_ATTRIBUTES_H
