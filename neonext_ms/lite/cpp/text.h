#ifndef NEONEXT_LITE_TEXT_H
#define NEONEXT_LITE_TEXT_H

#include <algorithm>
#include <cstring>
#include <string>

// Copy a message into the caller's buffer, cut off where that ends, and return 1.
inline int fail(const std::string &text, char *error, int size) {
  const auto length = std::min<size_t>(text.size(), size - 1);
  std::memcpy(error, text.data(), length);
  error[length] = '\0';
  return 1;
}

#endif
