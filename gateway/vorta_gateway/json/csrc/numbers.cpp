#include "numbers.hpp"

#include <charconv>
#include <cmath>
#include <cstring>

namespace vorta {
namespace {

constexpr int kMaxExactPower = 22;
constexpr double kPowers[kMaxExactPower + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr std::uint64_t kMaxExact = 1ULL << 53;
constexpr int kMaxExponent = 100'000;

bool is_digit(const char* at, const char* end) { return at < end && *at >= '0' && *at <= '9'; }

// The digits of a number, as far as they fit 64 bits, and the power of ten that they count.
struct Decimal {
  std::uint64_t digits = 0;
  bool is_exact = true;
  int power = 0;

  void add(char digit) {
    std::uint64_t next;
    if (__builtin_mul_overflow(digits, std::uint64_t{10}, &next) ||
        __builtin_add_overflow(next, static_cast<std::uint64_t>(digit - '0'), &next)) {
      is_exact = false;
    } else {
      digits = next;
    }
  }
};

bool read_whole_part(const char*& at, const char* end, Decimal& decimal) {
  if (!is_digit(at, end)) return false;
  if (*at == '0') {
    ++at;
    return true;
  }
  while (is_digit(at, end)) decimal.add(*at++);
  return true;
}

bool read_fraction(const char*& at, const char* end, Decimal& decimal) {
  if (!is_digit(at, end)) return false;
  const char* const begin = at;
  while (is_digit(at, end)) decimal.add(*at++);
  if (at - begin > kMaxExponent) decimal.is_exact = false;
  decimal.power -= static_cast<int>(at - begin > kMaxExponent ? 0 : at - begin);
  return true;
}

bool read_exponent(const char*& at, const char* end, Decimal& decimal) {
  bool is_negative = false;
  if (at < end && (*at == '+' || *at == '-')) is_negative = *at++ == '-';
  if (!is_digit(at, end)) return false;
  int exponent = 0;
  while (is_digit(at, end)) {
    if (exponent < kMaxExponent) exponent = exponent * 10 + (*at - '0');
    ++at;
  }
  decimal.power += is_negative ? -exponent : exponent;
  return true;
}

// The double nearest to a decimal, if both its factors are doubles themselves (Clinger's fast path): one rounding.
bool quick_real(const Decimal& decimal, double& real) {
  if (!decimal.is_exact || decimal.digits > kMaxExact) return false;
  if (decimal.power < -kMaxExactPower || decimal.power > kMaxExactPower) return false;
  real = static_cast<double>(decimal.digits);
  real = decimal.power < 0 ? real / kPowers[-decimal.power] : real * kPowers[decimal.power];
  return true;
}

bool whole(const Decimal& decimal, Number& number) {
  if (!decimal.is_exact || (number.is_negative && decimal.digits > 1ULL << 63)) return false;
  number.is_whole = true;
  number.magnitude = decimal.digits;
  const double magnitude = static_cast<double>(decimal.digits);
  number.real = number.is_negative && decimal.digits != 0 ? -magnitude : magnitude;
  return true;
}

// Lays the digits of a scientific notation, "-d.ddde+xx", out as JSON libraries do: plain from 1e-5 to 1e16.
struct Scientific {
  char digits[20];
  int num_digits = 0;
  int exponent = 0;
  bool is_negative = false;

  Scientific(const char* at, const char* end) {
    if (*at == '-') {
      is_negative = true;
      ++at;
    }
    for (; *at != 'e'; ++at) {
      if (*at != '.') digits[num_digits++] = *at;
    }
    const bool is_small = at[1] == '-';
    for (at += 2; at < end; ++at) exponent = exponent * 10 + (*at - '0');
    if (is_small) exponent = -exponent;
  }

  void put(Buffer& out) const {
    if (is_negative) out.put('-');
    if (exponent >= 16 || exponent < -5) {
      put_scientific(out);
    } else if (exponent < 0) {
      out.put("0.");
      out.put(std::string_view("0000", static_cast<std::size_t>(-exponent - 1)));
      out.put(std::string_view(digits, static_cast<std::size_t>(num_digits)));
    } else {
      put_plain(out);
    }
  }

  void put_plain(Buffer& out) const {
    const int num_before = exponent + 1;
    for (int index = 0; index < num_before; ++index) out.put(index < num_digits ? digits[index] : '0');
    out.put('.');
    if (num_digits <= num_before) {
      out.put('0');
    } else {
      out.put(std::string_view(digits + num_before, static_cast<std::size_t>(num_digits - num_before)));
    }
  }

  void put_scientific(Buffer& out) const {
    out.put(digits[0]);
    if (num_digits > 1) {
      out.put('.');
      out.put(std::string_view(digits + 1, static_cast<std::size_t>(num_digits - 1)));
    }
    out.put('e');
    out.put(exponent < 0 ? '-' : '+');
    put_whole(out, static_cast<std::uint64_t>(exponent < 0 ? -exponent : exponent));
  }
};

template <typename T>
void put_shortest(Buffer& out, T value) {
  char text[40];
  const auto made = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific);
  Scientific(text, made.ptr).put(out);
}

template <typename T>
void put_integer(Buffer& out, T value) {
  char* const to = out.room(24);
  out.advance(static_cast<std::size_t>(std::to_chars(to, to + 24, value).ptr - to));
}

}  // namespace

bool read_number(const char*& at, const char* end, Number& number) {
  const char* const begin = at;
  Decimal decimal;
  number.is_negative = at < end && *at == '-';
  if (number.is_negative) ++at;
  if (!read_whole_part(at, end, decimal)) return false;
  bool is_real = false;
  if (at < end && *at == '.') {
    is_real = true;
    if (!read_fraction(++at, end, decimal)) return false;
  }
  if (at < end && (*at | 0x20) == 'e') {
    is_real = true;
    if (!read_exponent(++at, end, decimal)) return false;
  }
  if (!is_real) return whole(decimal, number);
  number.is_whole = false;
  if (quick_real(decimal, number.real)) {
    if (number.is_negative) number.real = -number.real;
    return true;
  }
  return read_real({begin, static_cast<std::size_t>(at - begin)}, number.real);
}

bool read_digits(std::string_view text, Number& number) {
  const char* at = text.data();
  const char* const end = at + text.size();
  number.is_negative = at < end && *at == '-';
  if (number.is_negative) ++at;
  if (at == end || end - at > 20) return false;
  Decimal decimal;
  while (is_digit(at, end)) decimal.add(*at++);
  return at == end && whole(decimal, number);
}

bool read_real(std::string_view text, double& real) {
  const char* const end = text.data() + text.size();
  for (const char character : text) {
    if (!(character >= '0' && character <= '9') && std::strchr("+-.eE", character) == nullptr) return false;
    if (character == '\0') return false;
  }
  const auto made = std::from_chars(text.data(), end, real);
  return made.ec == std::errc() && made.ptr == end && std::isfinite(real);
}

bool make_whole(Number& number) {
  if (number.is_whole) return true;
  const double magnitude = std::fabs(number.real);
  if (!(magnitude < 0x1p64) || magnitude != std::floor(magnitude)) return false;
  number.is_negative = std::signbit(number.real);
  number.magnitude = static_cast<std::uint64_t>(magnitude);
  return true;
}

void put_whole(Buffer& out, std::uint64_t value) { put_integer(out, value); }
void put_whole(Buffer& out, std::int64_t value) { put_integer(out, value); }
void put_real(Buffer& out, double value) { put_shortest(out, value); }
void put_real(Buffer& out, float value) { put_shortest(out, value); }

}  // namespace vorta
