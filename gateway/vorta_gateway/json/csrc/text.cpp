#include "text.hpp"

#include <array>
#include <cstdint>
#include <cstring>

namespace vorta {
namespace {

constexpr std::uint64_t kOnes = 0x0101010101010101ULL;
constexpr std::uint64_t kHighs = 0x8080808080808080ULL;

std::uint64_t load8(const char* at) {
  std::uint64_t word;
  std::memcpy(&word, at, 8);
  return word;
}

// High bits where a byte of `word` is zero; none where no byte is.
std::uint64_t zeros(std::uint64_t word) { return (word - kOnes) & ~word & kHighs; }

// Non-zero where a byte is a quote, a backslash or a control character. May also be where a byte is not ASCII.
std::uint64_t specials(std::uint64_t word) {
  return zeros(word ^ (kOnes * '"')) | zeros(word ^ (kOnes * '\\')) | ((word - kOnes * 0x20) & ~word & kHighs);
}

bool is_special(char byte) { return byte == '"' || byte == '\\' || static_cast<unsigned char>(byte) < 0x20; }

// The bytes of the well-formed sequence at `at`; 0 if there is none. See table 3-7 of the Unicode standard.
int sequence(const unsigned char* at, const unsigned char* end) {
  const unsigned char first = at[0];
  if (first < 0x80) return 1;
  const int size = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  if (size == 0 || end - at < size) return 0;
  for (int index = 1; index < size; ++index) {
    if ((at[index] & 0xC0) != 0x80) return 0;
  }
  if ((first == 0xE0 && at[1] < 0xA0) || (first == 0xED && at[1] > 0x9F)) return 0;
  if ((first == 0xF0 && at[1] < 0x90) || (first == 0xF4 && at[1] > 0x8F)) return 0;
  return size;
}

int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

bool read_unit(const char*& at, const char* end, std::uint32_t& unit) {
  if (end - at < 4) return false;
  unit = 0;
  for (int index = 0; index < 4; ++index) {
    const int digit = hex(*at++);
    if (digit < 0) return false;
    unit = unit << 4 | static_cast<std::uint32_t>(digit);
  }
  return true;
}

void put_code_point(std::string& out, std::uint32_t code) {
  const auto put = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

bool read_unicode_escape(const char*& at, const char* end, std::string& out) {
  std::uint32_t code;
  if (!read_unit(at, end, code)) return false;
  if (code >= 0xDC00 && code < 0xE000) return false;
  if (code >= 0xD800 && code < 0xDC00) {
    std::uint32_t low;
    if (end - at < 2 || at[0] != '\\' || at[1] != 'u') return false;
    at += 2;
    if (!read_unit(at, end, low) || low < 0xDC00 || low >= 0xE000) return false;
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  put_code_point(out, code);
  return true;
}

bool read_escape(const char*& at, const char* end, std::string& out) {
  if (at == end) return false;
  const char kind = *at++;
  static constexpr std::string_view kKinds = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
  if (kind == 'u') return read_unicode_escape(at, end, out);
  const std::size_t index = kKinds.find(kind);
  if (index == std::string_view::npos) return false;
  out.push_back(kMeant[index]);
  return true;
}

void put_escape(Buffer& out, char byte) {
  static constexpr std::string_view kMeant = "\"\\\b\f\n\r\t", kKinds = "\"\\bfnrt", kHex = "0123456789abcdef";
  const std::size_t index = kMeant.find(byte);
  out.put('\\');
  if (index != std::string_view::npos) {
    out.put(kKinds[index]);
    return;
  }
  out.put("u00");
  out.put(kHex[static_cast<unsigned char>(byte) >> 4]);
  out.put(kHex[byte & 15]);
}

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<std::int8_t, 256> make_values() {
  std::array<std::int8_t, 256> values{};
  for (auto& value : values) value = -1;
  for (std::size_t index = 0; index < 64; ++index) {
    values[static_cast<unsigned char>(kAlphabet[index])] = static_cast<std::int8_t>(index);
  }
  values['-'] = 62;
  values['_'] = 63;
  return values;
}

constexpr std::array<std::int8_t, 256> kValues = make_values();

}  // namespace

bool is_utf8(std::string_view bytes) {
  const char* at = bytes.data();
  const char* const end = at + bytes.size();
  while (at < end) {
    if (end - at >= 8 && (load8(at) & kHighs) == 0) {
      at += 8;
      continue;
    }
    const int size = sequence(reinterpret_cast<const unsigned char*>(at), reinterpret_cast<const unsigned char*>(end));
    if (size == 0) return false;
    at += size;
  }
  return true;
}

const char* end_of_plain(const char* at, const char* end) {
  while (end - at >= 8 && specials(load8(at)) == 0) at += 8;
  while (at < end && !is_special(*at)) ++at;
  return at;
}

bool read_string(const char*& at, const char* end, std::string_view& value, std::string& scratch) {
  const char* begin = at;
  at = end_of_plain(at, end);
  if (at < end && *at == '"') {
    value = {begin, static_cast<std::size_t>(at - begin)};
    ++at;
    return true;
  }
  scratch.clear();
  while (at < end) {
    scratch.append(begin, at);
    const char byte = *at++;
    if (byte == '"') {
      value = scratch;
      return true;
    }
    if (byte != '\\' || !read_escape(at, end, scratch)) return false;
    begin = at;
    at = end_of_plain(at, end);
  }
  return false;
}

bool put_string(Buffer& out, std::string_view text) {
  if (!is_utf8(text)) return false;
  out.put('"');
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    const char* const stop = end_of_plain(at, end);
    out.put({at, static_cast<std::size_t>(stop - at)});
    if (stop == end) break;
    put_escape(out, *stop);
    at = stop + 1;
  }
  out.put('"');
  return true;
}

void put_base64(Buffer& out, std::string_view bytes) {
  char* to = out.room((bytes.size() + 2) / 3 * 4 + 2);
  const char* const begin = to;
  *to++ = '"';
  const auto byte = [&bytes](std::size_t index) -> std::uint32_t {
    return index < bytes.size() ? static_cast<unsigned char>(bytes[index]) : 0;
  };
  for (std::size_t index = 0; index < bytes.size(); index += 3) {
    const std::uint32_t bits = byte(index) << 16 | byte(index + 1) << 8 | byte(index + 2);
    *to++ = kAlphabet[bits >> 18];
    *to++ = kAlphabet[bits >> 12 & 63];
    *to++ = index + 1 < bytes.size() ? kAlphabet[bits >> 6 & 63] : '=';
    *to++ = index + 2 < bytes.size() ? kAlphabet[bits & 63] : '=';
  }
  *to++ = '"';
  out.advance(static_cast<std::size_t>(to - begin));
}

bool read_base64(std::string_view text, Buffer& out) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  if (text.size() % 4 == 1) return false;
  char* to = out.room(text.size() / 4 * 3 + 3);
  const char* const begin = to;
  std::uint32_t bits = 0;
  int num_bits = 0;
  for (const char character : text) {
    const int value = kValues[static_cast<unsigned char>(character)];
    if (value < 0) return false;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      *to++ = static_cast<char>(bits >> num_bits);
    }
  }
  if ((bits & ((1U << num_bits) - 1)) != 0) return false;  // bits that no byte has: not for us to judge
  out.advance(static_cast<std::size_t>(to - begin));
  return true;
}

}  // namespace vorta
