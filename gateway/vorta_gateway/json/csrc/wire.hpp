// protobuf's wire format.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "buffer.hpp"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fixed-size fields are copied as they stand in memory");

namespace vorta {

enum WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

inline void put_varint(Buffer& out, std::uint64_t value) {
  char* to = out.room(10);
  std::size_t size = 0;
  while (value > 0x7F) {
    to[size++] = static_cast<char>(value | 0x80);
    value >>= 7;
  }
  to[size++] = static_cast<char>(value);
  out.advance(size);
}

template <typename T>
void put_fixed(Buffer& out, T value) {
  std::memcpy(out.room(sizeof value), &value, sizeof value);
  out.advance(sizeof value);
}

// Reads within bounds. Every function returns whether what it reads is there and well formed.
struct Cursor {
  const std::uint8_t* at;
  const std::uint8_t* end;

  explicit Cursor(std::string_view data)
      : at(reinterpret_cast<const std::uint8_t*>(data.data())), end(at + data.size()) {}

  bool is_at_end() const { return at == end; }

  bool varint(std::uint64_t& value) {
    if (at < end && *at < 0x80) {
      value = *at++;
      return true;
    }
    return long_varint(value);
  }

  bool long_varint(std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && at < end; shift += 7) {
      const std::uint64_t byte = *at++;
      if (shift == 63 && byte > 1) return false;
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool tag(std::uint32_t& value) {
    std::uint64_t wide;
    if (!varint(wide) || wide > UINT32_MAX || wide < 8) return false;
    value = static_cast<std::uint32_t>(wide);
    return true;
  }

  // Passes over a tag if it is this one.
  bool next_is(std::uint32_t wanted) {
    const std::uint8_t* const before = at;
    std::uint32_t found;
    if (at < end && tag(found) && found == wanted) return true;
    at = before;
    return false;
  }

  template <typename T>
  bool fixed(T& value) {
    if (static_cast<std::size_t>(end - at) < sizeof value) return false;
    std::memcpy(&value, at, sizeof value);
    at += sizeof value;
    return true;
  }

  bool bytes(std::string_view& value) {
    std::uint64_t size;
    if (!varint(size) || size > static_cast<std::uint64_t>(end - at)) return false;
    value = {reinterpret_cast<const char*>(at), static_cast<std::size_t>(size)};
    at += size;
    return true;
  }

  // Passes over the value of a field that is not known. Groups are not read here.
  bool skip(std::uint32_t wire_type) {
    std::uint64_t number;
    std::uint32_t half;
    std::string_view data;
    switch (wire_type) {
      case kVarint:
        return varint(number);
      case kFixed64:
        return fixed(number);
      case kBytes:
        return bytes(data);
      case kFixed32:
        return fixed(half);
      default:
        return false;
    }
  }
};

}  // namespace vorta
