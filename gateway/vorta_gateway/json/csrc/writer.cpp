#include "writer.hpp"

#include <algorithm>
#include <cmath>

#include "numbers.hpp"
#include "text.hpp"

namespace vorta {
namespace {

constexpr int kMaxDepth = 90;            // protobuf reads no more than a hundred levels
constexpr std::size_t kFewKeys = 12;     // fewer are compared each with each
constexpr std::uint32_t kTypeBits = 7;

template <typename To>
To bit_cast(std::uint64_t bits) {
  To value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What of a varint a field of 32 bits takes.
std::uint64_t sign_extended(std::uint64_t bits) {
  return static_cast<std::uint64_t>(std::int64_t{static_cast<std::int32_t>(static_cast<std::uint32_t>(bits))});
}

std::uint64_t from_zigzag(std::uint64_t bits) { return bits >> 1 ^ (0 - (bits & 1)); }

}  // namespace

bool Writer::message(const Message& type, std::string_view data) {
  if (depth_ == kMaxDepth) return false;
  ++depth_;
  const bool is_good = type.form == Form::kPlain || type.form == Form::kEmpty ? object(type, data) : shaped(type, data);
  --depth_;
  return is_good;
}

bool Writer::shaped(const Message& type, std::string_view data) {
  switch (type.form) {
    case Form::kTimestamp:
      return time(data, true);
    case Form::kDuration:
      return time(data, false);
    case Form::kFieldMask:
      return field_mask(data);
    case Form::kWrapper:
      return wrapper(type, data);
    case Form::kValue:
      return json_value(type, data);
    case Form::kStruct:
    case Form::kListValue:
      return json_items(type, data);
    default:
      return false;
  }
}

bool Writer::object(const Message& type, std::string_view data) {
  out_.put('{');
  const std::size_t begin = out_.size();
  Seen seen, oneofs;
  std::size_t next = 0;  // fields before it have come, or been written as absent
  for (Cursor in(data); !in.is_at_end();) {
    std::uint32_t tag;
    if (!in.tag(tag)) return false;
    const Field* const found = type.find(tag >> 3);
    if (found == nullptr) {
      if (!in.skip(tag & kTypeBits)) return false;
      continue;
    }
    if (table_.always_print && found->index >= next) {
      if (!absent(type, next, found->index, seen)) return false;
      next = found->index + std::size_t{1};
    }
    if (!seen.add(found->index)) return false;
    if (found->oneof >= 0 && !oneofs.add(static_cast<std::size_t>(found->oneof))) return false;
    if (!field(*found, tag, in)) return false;
  }
  if (table_.always_print && !absent(type, next, type.fields.size(), seen)) return false;
  close(begin, '}');
  return true;
}

bool Writer::field(const Field& field, std::uint32_t tag, Cursor& in) {
  const std::size_t begin = out_.size();
  out_.put(field.key);
  if (field.is_repeated) {
    if (!repeated(field, tag, in)) return false;
  } else {
    Payload payload;
    if (tag != field.tag() || !read(field.kind, in, payload)) return false;
    if (!field.has_presence && !table_.always_print && payload.is_default()) {
      out_.truncate(begin);
      return true;
    }
    if (!value(field, payload)) return false;
  }
  out_.put(',');
  return true;
}

bool Writer::absent(const Message& type, std::size_t begin, std::size_t end, Seen& seen) {
  for (std::size_t index = begin; index < end; ++index) {
    const Field& field = type.fields[index];
    if (field.has_presence || !seen.add(index)) continue;
    out_.put(field.key);
    if (!absent_value(field)) return false;
    out_.put(',');
  }
  return true;
}

bool Writer::absent_value(const Field& field) {
  if (!field.is_repeated) return value(field, Payload());
  out_.put(field.is_map ? "{}" : "[]");
  return true;
}

bool Writer::repeated(const Field& field, std::uint32_t tag, Cursor& in) {
  out_.put(field.is_map ? '{' : '[');
  const std::size_t begin = out_.size();
  if (!(field.is_map ? entries(field, tag, in) : items(field, tag, in))) return false;
  if (out_.size() == begin) return false;  // an empty packed array: absent
  close(begin, field.is_map ? '}' : ']');
  return true;
}

bool Writer::items(const Field& field, std::uint32_t tag, Cursor& in) {
  if (tag == field.packed_tag() && field.wire_type() != kBytes) {
    std::string_view data;
    return in.bytes(data) && packed(field, data);
  }
  if (tag != field.tag()) return false;
  do {
    Payload payload;
    if (!read(field.kind, in, payload) || !value(field, payload)) return false;
    out_.put(',');
  } while (in.next_is(tag));
  return true;
}

bool Writer::packed(const Field& field, std::string_view data) {
  Payload payload;
  for (Cursor in(data); !in.is_at_end();) {
    if (!read(field.kind, in, payload) || !value(field, payload)) return false;
    out_.put(',');
  }
  return true;
}

bool Writer::entries(const Field& field, std::uint32_t tag, Cursor& in) {
  const std::size_t begin = keys_.size();
  if (tag != field.tag()) return false;
  do {
    std::string_view data;
    if (!in.bytes(data) || !entry(*field.message, data)) return false;
    out_.put(',');
  } while (in.next_is(tag));
  const bool is_good = has_unique_keys(begin);
  keys_.resize(begin);
  return is_good;
}

bool Writer::entry(const Message& type, std::string_view data) {
  const Field &key_field = type.fields[0], &value_field = type.fields[1];
  Payload key, payload;
  Seen seen;
  for (Cursor in(data); !in.is_at_end();) {
    std::uint32_t tag;
    if (!in.tag(tag)) return false;
    if (tag == key_field.tag()) {
      if (!seen.add(1) || !read(key_field.kind, in, key)) return false;
    } else if (tag == value_field.tag()) {
      if (!seen.add(2) || !read(value_field.kind, in, payload)) return false;
    } else {
      return false;
    }
  }
  return entry_key(key_field, key) && value(value_field, payload);
}

bool Writer::entry_key(const Field& field, const Payload& key) {
  keys_.push_back({key.bytes, key.bits});
  if (field.kind == Kind::kString) {
    if (!put_string(out_, key.bytes)) return false;
  } else if (field.kind == Kind::kBool) {
    out_.put(key.bits != 0 ? "\"true\"" : "\"false\"");
  } else if (field.kind == Kind::kUint64 || field.kind == Kind::kFixed64) {
    quoted(key.bits);
  } else {
    quoted(static_cast<std::int64_t>(key.bits));
  }
  out_.put(':');
  return true;
}

bool Writer::has_unique_keys(std::size_t begin) {
  const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(begin);
  if (keys_.size() - begin > kFewKeys) {
    std::sort(first, keys_.end());
    return std::adjacent_find(first, keys_.end()) == keys_.end();
  }
  for (auto one = first; one != keys_.end(); ++one) {
    if (std::find(first, one, *one) != one) return false;
  }
  return true;
}

bool Writer::read(Kind kind, Cursor& in, Payload& payload) {
  std::uint32_t half;
  switch (kind) {
    case Kind::kDouble:
    case Kind::kFixed64:
    case Kind::kSfixed64:
      return in.fixed(payload.bits);
    case Kind::kFloat:
    case Kind::kFixed32:
    case Kind::kSfixed32:
      if (!in.fixed(half)) return false;
      payload.bits = kind == Kind::kSfixed32 ? sign_extended(half) : half;
      return true;
    case Kind::kString:
    case Kind::kBytes:
    case Kind::kMessage:
      return in.bytes(payload.bytes);
    case Kind::kGroup:
      return false;
    default:
      break;
  }
  if (!in.varint(payload.bits)) return false;
  if (kind == Kind::kInt32 || kind == Kind::kEnum) payload.bits = sign_extended(payload.bits);
  if (kind == Kind::kUint32) payload.bits = static_cast<std::uint32_t>(payload.bits);
  if (kind == Kind::kSint32) payload.bits = sign_extended(from_zigzag(static_cast<std::uint32_t>(payload.bits)));
  if (kind == Kind::kSint64) payload.bits = from_zigzag(payload.bits);
  if (kind == Kind::kBool) payload.bits = payload.bits != 0;
  return true;
}

bool Writer::value(const Field& field, const Payload& payload) {
  switch (field.kind) {
    case Kind::kDouble:
      return real(bit_cast<double>(payload.bits));
    case Kind::kFloat:
      return real(bit_cast<float>(payload.bits));
    case Kind::kString:
      return put_string(out_, payload.bytes);
    case Kind::kBytes:
      put_base64(out_, payload.bytes);
      return true;
    case Kind::kMessage:
      return message(*field.message, payload.bytes);
    case Kind::kGroup:
      return false;
    case Kind::kEnum:
      return enumerated(*field.enumeration, static_cast<std::int32_t>(payload.bits));
    case Kind::kBool:
      out_.put(payload.bits != 0 ? "true" : "false");
      return true;
    case Kind::kUint64:
    case Kind::kFixed64:
      quoted(payload.bits);
      return true;
    case Kind::kInt64:
    case Kind::kSfixed64:
    case Kind::kSint64:
      quoted(static_cast<std::int64_t>(payload.bits));
      return true;
    default:
      put_whole(out_, static_cast<std::int64_t>(payload.bits));
      return true;
  }
}

bool Writer::enumerated(const Enum& type, std::int32_t number) {
  const std::string* const text = type.text(number);
  if (text == nullptr && type.is_closed) return false;  // protobuf takes it for an unknown field
  if (type.is_null) {
    out_.put("null");
  } else if (text == nullptr || table_.enum_numbers) {
    put_whole(out_, std::int64_t{number});
  } else {
    out_.put(*text);
  }
  return true;
}

template <typename T>
bool Writer::real(T number) {
  if (std::isfinite(number)) {
    put_real(out_, number);
  } else if (std::isnan(number)) {
    out_.put("\"NaN\"");
  } else {
    out_.put(number > 0 ? "\"Infinity\"" : "\"-Infinity\"");
  }
  return true;
}

template bool Writer::real(double);
template bool Writer::real(float);

void Writer::quoted(std::uint64_t number) {
  out_.put('"');
  put_whole(out_, number);
  out_.put('"');
}

void Writer::quoted(std::int64_t number) {
  out_.put('"');
  put_whole(out_, number);
  out_.put('"');
}

void Writer::close(std::size_t begin, char bracket) {
  if (out_.size() > begin) out_.truncate(out_.size() - 1);
  out_.put(bracket);
}

}  // namespace vorta
