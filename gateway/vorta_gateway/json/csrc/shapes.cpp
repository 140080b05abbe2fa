// Writing messages that have a JSON form of their own.
#include <cmath>

#include "numbers.hpp"
#include "text.hpp"
#include "times.hpp"
#include "writer.hpp"

namespace vorta {

bool Writer::time(std::string_view data, bool is_timestamp) {
  Time time;
  Seen seen;
  for (Cursor in(data); !in.is_at_end();) {
    std::uint32_t tag;
    std::uint64_t bits;
    if (!in.tag(tag) || (tag != (1 << 3 | kVarint) && tag != (2 << 3 | kVarint))) return false;
    if (!seen.add(tag >> 3) || !in.varint(bits)) return false;
    if (tag >> 3 == 1) {
      time.seconds = static_cast<std::int64_t>(bits);
    } else {
      time.nanos = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits));
    }
  }
  return is_timestamp ? put_timestamp(out_, time) : put_duration(out_, time);
}

bool Writer::field_mask(std::string_view data) {
  bool is_first = true;
  out_.put('"');
  for (Cursor in(data); !in.is_at_end(); is_first = false) {
    std::string_view path;
    if (!in.next_is(1 << 3 | kBytes) || !in.bytes(path)) return false;
    if (!is_first) out_.put(',');
    if (!put_camel_case(out_, path)) return false;
  }
  out_.put('"');
  return true;
}

bool Writer::wrapper(const Message& type, std::string_view data) {
  const Field& field = type.fields.front();
  Payload payload;
  Cursor in(data);
  if (!in.is_at_end() && (!in.next_is(field.tag()) || !read(field.kind, in, payload))) return false;
  return in.is_at_end() && value(field, payload);
}

// The one member that a Value has; null if it has none.
bool Writer::json_value(const Message& type, std::string_view data) {
  Cursor in(data);
  std::uint32_t tag;
  Payload payload;
  if (in.is_at_end()) {
    out_.put("null");
    return true;
  }
  if (!in.tag(tag)) return false;
  const Field* const field = type.find(tag >> 3);
  if (field == nullptr || tag != field->tag() || !read(field->kind, in, payload) || !in.is_at_end()) return false;
  if (field->kind != Kind::kDouble) return value(*field, payload);
  double number;
  std::memcpy(&number, &payload.bits, sizeof number);
  if (!std::isfinite(number)) return false;
  if (std::fabs(number) < 0x1p53 && number == std::floor(number) && !(number == 0 && std::signbit(number))) {
    put_whole(out_, static_cast<std::int64_t>(number));
  } else {
    put_real(out_, number);
  }
  return true;
}

// A Struct or a ListValue: the one field that it has, as it is.
bool Writer::json_items(const Message& type, std::string_view data) {
  const Field& field = type.fields.front();
  Cursor in(data);
  std::uint32_t tag;
  if (in.is_at_end()) {
    out_.put(field.is_map ? "{}" : "[]");
    return true;
  }
  return in.tag(tag) && tag >> 3 == field.number && repeated(field, tag, in) && in.is_at_end();
}

}  // namespace vorta
