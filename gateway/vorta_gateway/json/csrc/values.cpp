// Reading messages that have a JSON form of their own, and passing over values.
#include "reader.hpp"
#include "text.hpp"
#include "times.hpp"
#include "wire.hpp"

namespace vorta {
namespace {

constexpr std::uint32_t tag(std::uint32_t number, WireType type) { return number << 3 | type; }

}  // namespace

bool Reader::time(bool is_timestamp) {
  std::string_view text;
  Time time;
  if (!string(text)) return false;
  if (!(is_timestamp ? read_timestamp(text, time) : read_duration(text, time))) return false;
  if (time.seconds != 0) {
    put_varint(out_, tag(1, kVarint));
    put_varint(out_, static_cast<std::uint64_t>(time.seconds));
  }
  if (time.nanos != 0) {
    put_varint(out_, tag(2, kVarint));
    put_varint(out_, static_cast<std::uint64_t>(std::int64_t{time.nanos}));
  }
  return true;
}

bool Reader::field_mask() {
  std::string_view text;
  if (!string(text)) return false;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    std::size_t mark;
    put_varint(out_, tag(1, kBytes));
    if (!open(mark) || !put_snake_case(out_, text.substr(0, comma))) return false;
    close(mark);
    if (comma == std::string_view::npos) return true;
    text.remove_prefix(comma + 1);
    if (text.empty()) return false;  // a path of no letters at the end
  }
  return true;
}

bool Reader::empty() {
  if (!take('{')) return false;
  space();
  return take('}');
}

bool Reader::json_value(int depth) {
  std::size_t mark;
  Number number;
  switch (peek()) {
    case '"':
      put_varint(out_, tag(3, kBytes));
      return text_or_bytes(true);
    case 't':
    case 'f':
      put_varint(out_, tag(4, kVarint));
      return boolean();
    case 'n':
      put_varint(out_, tag(1, kVarint));
      put_varint(out_, 0);
      return literal("null");
    case '{':
      put_varint(out_, tag(5, kBytes));
      if (!open(mark) || !json_struct(depth)) return false;
      close(mark);
      return true;
    case '[':
      put_varint(out_, tag(6, kBytes));
      if (!open(mark) || !json_list(depth)) return false;
      close(mark);
      return true;
    default:
      put_varint(out_, tag(2, kFixed64));
      if (!read_number(at_, end_, number)) return false;
      put_fixed(out_, number.real);
      return true;
  }
}

bool Reader::json_struct(int depth) {
  if (depth == 0 || !take('{')) return false;
  space();
  if (take('}')) return true;
  int more = 1;
  while (more == 1) {
    std::size_t entry, value;
    std::string_view name;
    put_varint(out_, tag(1, kBytes));
    if (!open(entry) || !string(name)) return false;
    put_varint(out_, tag(1, kBytes));
    put_varint(out_, name.size());
    out_.put(name);
    space();
    if (!take(':')) return false;
    space();
    put_varint(out_, tag(2, kBytes));
    if (!open(value) || !json_value(depth - 1)) return false;
    close(value);
    close(entry);
    more = next('}');
  }
  return more == 0;
}

bool Reader::json_list(int depth) {
  if (depth == 0 || !take('[')) return false;
  space();
  if (take(']')) return true;
  int more = 1;
  while (more == 1) {
    std::size_t mark;
    put_varint(out_, tag(1, kBytes));
    if (!open(mark) || !json_value(depth - 1)) return false;
    close(mark);
    more = next(']');
  }
  return more == 0;
}

bool Reader::skip_value(int depth) {
  std::string_view text;
  Number number;
  switch (peek()) {
    case '"':
      return string(text);
    case 't':
      return literal("true");
    case 'f':
      return literal("false");
    case 'n':
      return literal("null");
    case '{':
      return skip_items('}', depth);
    case '[':
      return skip_items(']', depth);
    default:
      return read_number(at_, end_, number);
  }
}

bool Reader::skip_items(char close, int depth) {
  if (depth == 0) return false;
  ++at_;
  space();
  if (take(close)) return true;
  int more = 1;
  while (more == 1) {
    std::string_view name;
    if (close == '}') {
      if (!string(name)) return false;
      space();
      if (!take(':')) return false;
      space();
    }
    if (!skip_value(depth - 1)) return false;
    more = next(close);
  }
  return more == 0;
}

}  // namespace vorta
