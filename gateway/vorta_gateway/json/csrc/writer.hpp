// Wire bytes to JSON.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "buffer.hpp"
#include "table.hpp"
#include "wire.hpp"

namespace vorta {

// Writes one message. Fields are written in the order in which they come, which is that of their numbers but for
// unusual encoders. Every function returns whether it went well; when not, the codec in Python does it again: also
// where wire bytes are right and unusual, such as a message in two parts.
class Writer {
 public:
  Writer(const Table& table, Buffer& out) : table_(table), out_(out) {}

  bool run(std::string_view data) { return message(*table_.messages.front(), data); }

 private:
  // A field's value as it stands in the wire: a number's bits, or bytes.
  struct Payload {
    std::uint64_t bits = 0;
    std::string_view bytes;

    bool is_default() const { return bits == 0 && bytes.empty(); }
  };

  // A map's key: a text, or a number without text.
  struct Key {
    std::string_view text;
    std::uint64_t bits;

    bool operator==(const Key& other) const { return bits == other.bits && text == other.text; }
    bool operator<(const Key& other) const { return bits != other.bits ? bits < other.bits : text < other.text; }
  };

  bool message(const Message& type, std::string_view data);
  bool shaped(const Message& type, std::string_view data);
  bool object(const Message& type, std::string_view data);
  bool field(const Field& field, std::uint32_t tag, Cursor& in);
  bool absent(const Message& type, std::size_t begin, std::size_t end, Seen& seen);
  bool absent_value(const Field& field);

  bool repeated(const Field& field, std::uint32_t tag, Cursor& in);
  bool items(const Field& field, std::uint32_t tag, Cursor& in);
  bool packed(const Field& field, std::string_view data);
  bool entries(const Field& field, std::uint32_t tag, Cursor& in);
  bool entry(const Message& type, std::string_view data);
  bool entry_key(const Field& field, const Payload& key);
  bool has_unique_keys(std::size_t begin);

  bool read(Kind kind, Cursor& in, Payload& payload);
  bool value(const Field& field, const Payload& payload);
  bool enumerated(const Enum& type, std::int32_t number);
  template <typename T>
  bool real(T number);
  void quoted(std::uint64_t number);
  void quoted(std::int64_t number);

  bool time(std::string_view data, bool is_timestamp);
  bool field_mask(std::string_view data);
  bool wrapper(const Message& type, std::string_view data);
  bool json_value(const Message& type, std::string_view data);
  bool json_items(const Message& type, std::string_view data);

  // Ends an object or array: in place of the comma behind its last item, if it has any.
  void close(std::size_t begin, char bracket);

  const Table& table_;
  Buffer& out_;
  std::vector<Key> keys_;  // of the maps that are being written, the inner ones' last
  int depth_ = 0;
};

}  // namespace vorta
