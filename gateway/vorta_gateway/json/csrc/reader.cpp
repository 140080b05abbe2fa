#include "reader.hpp"

#include <cmath>
#include <limits>

#include "text.hpp"
#include "times.hpp"
#include "wire.hpp"

namespace vorta {
namespace {

constexpr int kMaxDepth = 64;       // as the codec in Python has it
constexpr int kMaxValueDepth = 32;  // as well
constexpr int kMaxWireDepth = 90;   // protobuf reads no more than a hundred levels
constexpr int kMaxSkipDepth = 64;

// The bits of a whole number in a field's two's complement; false where it does not fit.
bool fit(Kind kind, const Number& number, std::uint64_t& bits) {
  std::uint64_t max_positive, max_negative = 0;
  switch (kind) {
    case Kind::kInt32:
    case Kind::kSint32:
    case Kind::kSfixed32:
    case Kind::kEnum:
      max_positive = INT32_MAX;
      max_negative = max_positive + 1;
      break;
    case Kind::kUint32:
    case Kind::kFixed32:
      max_positive = UINT32_MAX;
      break;
    case Kind::kInt64:
    case Kind::kSint64:
    case Kind::kSfixed64:
      max_positive = INT64_MAX;
      max_negative = max_positive + 1;
      break;
    default:
      max_positive = UINT64_MAX;
  }
  bits = number.is_negative ? 0 - number.magnitude : number.magnitude;
  return number.magnitude <= (number.is_negative ? max_negative : max_positive);
}

void put_integer(Buffer& out, Kind kind, std::uint64_t bits) {
  switch (kind) {
    case Kind::kSint32:
    case Kind::kSint64:
      put_varint(out, bits << 1 ^ (0 - (bits >> 63)));
      break;
    case Kind::kFixed32:
    case Kind::kSfixed32:
      put_fixed(out, static_cast<std::uint32_t>(bits));
      break;
    case Kind::kFixed64:
    case Kind::kSfixed64:
      put_fixed(out, bits);
      break;
    default:
      put_varint(out, bits);
  }
}

bool is_zero(std::string_view bytes) { return bytes.find_first_not_of('\0') == std::string_view::npos; }

// Whether equal keys have equal texts, so that the last of two entries with one text is the last with its key.
bool is_canonical(std::string_view digits) {
  if (digits == "0") return true;
  if (!digits.empty() && digits.front() == '-') digits.remove_prefix(1);
  return !digits.empty() && digits.front() != '0';
}

}  // namespace

bool Reader::run() {
  if (!is_utf8({at_, static_cast<std::size_t>(end_ - at_)})) return false;
  space();
  if (!message(*table_.messages.front(), kMaxDepth)) return false;
  space();
  return at_ == end_;
}

bool Reader::message(const Message& type, int depth) {
  switch (type.form) {
    case Form::kPlain:
      return object(type, depth);
    case Form::kEmpty:
      return empty();
    case Form::kTimestamp:
      return time(true);
    case Form::kDuration:
      return time(false);
    case Form::kFieldMask:
      return field_mask();
    case Form::kWrapper:
      return singular(type.fields.front(), depth);
    case Form::kStruct:
      return json_struct(kMaxValueDepth);
    case Form::kValue:
      return json_value(kMaxValueDepth);
    case Form::kListValue:
      return json_list(kMaxValueDepth);
    default:
      return false;
  }
}

bool Reader::object(const Message& type, int depth) {
  if (depth == 0 || !take('{')) return false;
  space();
  if (take('}')) return true;
  Seen seen, oneofs;
  int more = 1;
  while (more == 1) {
    std::string_view name;
    if (!string(name)) return false;
    const std::int32_t* const index = type.names.find(name);
    space();
    if (!take(':')) return false;
    space();
    if (index == nullptr) {
      if (!table_.ignore_unknown || !skip_value(kMaxSkipDepth)) return false;
    } else if (!seen.add(static_cast<std::size_t>(*index)) || !member(type.fields[*index], depth - 1, oneofs)) {
      return false;  // of a name that comes twice, the last counts; of two names of one field, both
    }
    more = next('}');
  }
  return more == 0;
}

bool Reader::member(const Field& field, int depth, Seen& oneofs) {
  if (peek() == 'n' && !field.takes_null) return literal("null");
  if (field.oneof >= 0 && !oneofs.add(static_cast<std::size_t>(field.oneof))) return false;
  if (field.is_map) return map(field, depth);
  return field.is_repeated ? list(field, depth) : singular(field, depth);
}

bool Reader::singular(const Field& field, int depth) {
  const std::size_t begin = out_.size();
  put_varint(out_, field.tag());
  const std::size_t value = out_.size();
  if (!element(field, depth)) return false;
  if (!field.has_presence && is_zero({out_.data() + value, out_.size() - value})) out_.truncate(begin);
  return true;
}

bool Reader::element(const Field& field, int depth) {
  if (field.kind != Kind::kMessage) return scalar(field);
  std::size_t mark;
  if (!open(mark) || !message(*field.message, depth)) return false;
  close(mark);
  return true;
}

bool Reader::list(const Field& field, int depth) {
  if (!take('[')) return false;
  space();
  if (take(']')) return true;
  std::size_t mark = 0;
  if (field.is_packed) {
    put_varint(out_, field.packed_tag());
    if (!open(mark)) return false;
  }
  int more = 1;
  while (more == 1) {
    if (!field.is_packed) put_varint(out_, field.tag());
    if (!element(field, depth)) return false;
    more = next(']');
  }
  if (field.is_packed) close(mark);
  return more == 0;
}

bool Reader::map(const Field& field, int depth) {
  if (!take('{')) return false;
  space();
  if (take('}')) return true;
  const Field& value = field.message->fields[1];
  int more = 1;
  while (more == 1) {
    std::size_t mark;
    put_varint(out_, field.tag());
    if (!open(mark) || !map_key(field.message->fields[0])) return false;
    space();
    if (!take(':')) return false;
    space();
    put_varint(out_, value.tag());
    if (!element(value, depth)) return false;
    close(mark);
    more = next('}');
  }
  return more == 0;
}

bool Reader::map_key(const Field& field) {
  std::string_view text;
  if (!string(text)) return false;
  put_varint(out_, field.tag());
  if (field.kind == Kind::kString) {
    put_varint(out_, text.size());
    out_.put(text);
    return true;
  }
  if (field.kind == Kind::kBool) {
    out_.put(text == "true" ? '\1' : '\0');
    return text == "true" || text == "false";
  }
  Number number;
  std::uint64_t bits;
  if (!is_canonical(text) || !read_digits(text, number) || !fit(field.kind, number, bits)) return false;
  put_integer(out_, field.kind, bits);
  return true;
}

bool Reader::scalar(const Field& field) {
  switch (field.kind) {
    case Kind::kDouble:
      return real(false);
    case Kind::kFloat:
      return real(true);
    case Kind::kBool:
      return boolean();
    case Kind::kString:
      return text_or_bytes(true);
    case Kind::kBytes:
      return text_or_bytes(false);
    case Kind::kEnum:
      return enumerated(*field.enumeration);
    case Kind::kGroup:
    case Kind::kMessage:
      return false;
    default:
      return integer(field.kind);
  }
}

bool Reader::integer(Kind kind) {
  Number number;
  std::uint64_t bits;
  if (peek() == '"') {
    std::string_view text;
    if (!string(text) || !read_digits(text, number)) return false;
  } else if (!read_number(at_, end_, number) || !make_whole(number)) {
    return false;
  }
  if (!fit(kind, number, bits)) return false;
  put_integer(out_, kind, bits);
  return true;
}

bool Reader::enumerated(const Enum& type) {
  if (peek() == '"') {
    std::string_view text;
    if (!string(text)) return false;
    const std::int32_t* const number = type.names.find(text);
    if (number == nullptr) return false;
    put_varint(out_, static_cast<std::uint64_t>(std::int64_t{*number}));
    return true;
  }
  if (peek() == 'n') {
    put_varint(out_, 0);
    return type.is_null && literal("null");
  }
  Number number;
  std::uint64_t bits;
  if (!read_number(at_, end_, number) || !number.is_whole || !fit(Kind::kEnum, number, bits)) return false;
  if (type.is_closed && type.text(static_cast<std::int32_t>(bits)) == nullptr) return false;
  put_varint(out_, bits);
  return true;
}

bool Reader::boolean() {
  const bool value = peek() == 't';
  out_.put(value ? '\1' : '\0');
  return literal(value ? "true" : "false");
}

bool Reader::real(bool is_float32) {
  double value;
  if (peek() == '"') {
    std::string_view text;
    if (!string(text)) return false;
    if (text == "NaN") {
      value = std::numeric_limits<double>::quiet_NaN();
    } else if (text == "Infinity" || text == "-Infinity") {
      value = std::numeric_limits<double>::infinity() * (text[0] == '-' ? -1 : 1);
    } else if (!read_real(text, value)) {
      return false;
    }
  } else {
    Number number;
    if (!read_number(at_, end_, number)) return false;
    value = number.real;
  }
  if (!is_float32) {
    put_fixed(out_, value);
    return true;
  }
  const bool is_large = std::isfinite(value) && std::fabs(value) >= 3.4028235677973366e38;  // rounds to infinity
  if (!is_large) put_fixed(out_, static_cast<float>(value));
  return !is_large;
}

bool Reader::text_or_bytes(bool is_text) {
  std::string_view text;
  if (!string(text)) return false;
  if (is_text) {
    put_varint(out_, text.size());
    out_.put(text);
    return true;
  }
  std::size_t mark;
  if (!open(mark) || !read_base64(text, out_)) return false;
  close(mark);
  return true;
}

int Reader::next(char close) {
  space();
  if (take(',')) {
    space();
    return 1;
  }
  return take(close) ? 0 : -1;
}

bool Reader::string(std::string_view& value) { return take('"') && read_string(at_, end_, value, scratch_); }

bool Reader::literal(std::string_view word) {
  if (std::string_view(at_, static_cast<std::size_t>(end_ - at_)).substr(0, word.size()) != word) return false;
  at_ += word.size();
  return true;
}

bool Reader::open(std::size_t& mark) {
  out_.put('\0');
  mark = out_.size();
  return ++wire_depth_ <= kMaxWireDepth;
}

void Reader::close(std::size_t mark) {
  --wire_depth_;
  const std::uint64_t size = out_.size() - mark;
  if (size > 0x7F) {
    std::size_t num_more = 0;
    for (std::uint64_t rest = size >> 7; rest > 0; rest >>= 7) ++num_more;
    out_.widen(mark, num_more);
  }
  std::uint64_t rest = size;
  for (std::size_t index = mark - 1; true; ++index, rest >>= 7) {
    out_[index] = static_cast<char>(rest > 0x7F ? rest | 0x80 : rest);
    if (rest <= 0x7F) return;
  }
}

}  // namespace vorta
