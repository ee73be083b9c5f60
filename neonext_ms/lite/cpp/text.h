#ifndef NEONEXT_LITE_TEXT_H
#define NEONEXT_LITE_TEXT_H

#include <algorithm>
#include <cstring>
#include <string>

// Copy a text into the caller's buffer, cut off where that ends.
inline void copy_text(const std::string &text, char *place, int size) {
  const auto length = std::min<size_t>(text.size(), size - 1);
  std::memcpy(place, text.data(), length);
  place[length] = '\0';
}

// Copy the reason of a failure, and return 1.
inline int fail(const std::string &text, char *error, int size) {
  copy_text(text, error, size);
  return 1;
}

#endif
