// JSON to wire bytes.
#pragma once

#include <string>
#include <string_view>

#include "buffer.hpp"
#include "numbers.hpp"
#include "table.hpp"

namespace vorta {

// Reads one JSON text. Every function returns whether it went well; when not, what was written means nothing, and the
// codec in Python reads the text again: it takes the rare forms that are left out here, and names what is wrong.
class Reader {
 public:
  Reader(const Table& table, std::string_view text, Buffer& out)
      : table_(table), at_(text.data()), end_(text.data() + text.size()), out_(out) {}

  bool run();

 private:
  bool message(const Message& type, int depth);
  bool object(const Message& type, int depth);
  bool member(const Field& field, int depth, Seen& oneofs);
  bool singular(const Field& field, int depth);
  bool list(const Field& field, int depth);
  bool map(const Field& field, int depth);
  bool map_key(const Field& field);
  bool element(const Field& field, int depth);

  bool scalar(const Field& field);
  bool integer(Kind kind);
  bool enumerated(const Enum& type);
  bool boolean();
  bool real(bool is_float32);
  bool text_or_bytes(bool is_text);

  bool time(bool is_timestamp);
  bool field_mask();
  bool empty();
  bool json_value(int depth);
  bool json_struct(int depth);
  bool json_list(int depth);

  bool skip_value(int depth);
  bool skip_items(char close, int depth);

  bool string(std::string_view& value);
  bool literal(std::string_view word);
  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }
  char peek() const { return at_ < end_ ? *at_ : '\0'; }
  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  // After an element of an object or array: 1 if another one follows, 0 at the end, -1 if neither is there.
  int next(char close);

  // A message of the wire, or whatever has its length before it.
  bool open(std::size_t& mark);
  void close(std::size_t mark);

  const Table& table_;
  const char* at_;
  const char* const end_;
  Buffer& out_;
  std::string scratch_;
  int wire_depth_ = 0;
};

}  // namespace vorta
