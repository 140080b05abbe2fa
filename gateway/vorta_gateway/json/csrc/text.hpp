// Unicode, JSON strings and base64.
#pragma once

#include <string>
#include <string_view>

#include "buffer.hpp"

namespace vorta {

// Whether bytes are UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view bytes);

// The end of the part that a JSON string has as it is: up to a quote, a backslash or a control character.
const char* end_of_plain(const char* at, const char* end);

// Reads a JSON string whose text is known to be UTF-8, from behind its first quote to behind its last. `value` is a
// view of the text itself, or of `scratch` where there were escapes. False if it is malformed or has a lone surrogate.
bool read_string(const char*& at, const char* end, std::string_view& value, std::string& scratch);

// Writes a JSON string. False if the text is not UTF-8.
bool put_string(Buffer& out, std::string_view text);

// Writes base64 in quotes.
void put_base64(Buffer& out, std::string_view bytes);

// Decodes base64 of either alphabet, padded or not. False for what is not certainly that.
bool read_base64(std::string_view text, Buffer& out);

}  // namespace vorta
