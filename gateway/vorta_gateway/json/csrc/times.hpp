// Texts of Timestamp, Duration and FieldMask.
#pragma once

#include <cstdint>
#include <string_view>

#include "buffer.hpp"

namespace vorta {

struct Time {
  std::int64_t seconds = 0;
  std::int32_t nanos = 0;
};

// All of these are false for what is not certainly right.
bool read_timestamp(std::string_view text, Time& time);
bool read_duration(std::string_view text, Time& time);
bool put_timestamp(Buffer& out, const Time& time);
bool put_duration(Buffer& out, const Time& time);

// One path of a FieldMask. Its characters are letters, digits, "_" and ".", or it is not read, or written, here.
bool put_snake_case(Buffer& out, std::string_view path);
bool put_camel_case(Buffer& out, std::string_view path);

}  // namespace vorta
