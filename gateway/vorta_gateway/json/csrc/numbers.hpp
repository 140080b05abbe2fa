// Numbers from and to text.
#pragma once

#include <cstdint>
#include <string_view>

#include "buffer.hpp"

namespace vorta {

// A number as JSON has it: whole, with its sign apart, or a double.
struct Number {
  bool is_whole = false;
  bool is_negative = false;
  std::uint64_t magnitude = 0;
  double real = 0;  // of whole numbers too
};

// Reads a JSON number. False if there is none, or one that takes more care: whole ones of more than 64 bits, those
// that no double is near to.
bool read_number(const char*& at, const char* end, Number& number);

// Reads a text of up to 20 digits, with a sign perhaps. False for anything else, and for more than 64 bits.
bool read_digits(std::string_view text, Number& number);

// Reads a text of a number with or without a fraction and an exponent, a little more than JSON takes.
bool read_real(std::string_view text, double& real);

// Makes a whole number of a double that is one and fits 64 bits.
bool make_whole(Number& number);

void put_whole(Buffer& out, std::uint64_t value);
void put_whole(Buffer& out, std::int64_t value);

// Writes the shortest text that reads as the same number again, which must be finite. It always looks like a real one.
void put_real(Buffer& out, double value);
void put_real(Buffer& out, float value);

}  // namespace vorta
