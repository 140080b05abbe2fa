// What the codec knows of message types; made in Python from descriptors, see native.py.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vorta {

// FieldDescriptorProto.Type.
enum class Kind : std::uint8_t {
  kDouble = 1,
  kFloat = 2,
  kInt64 = 3,
  kUint64 = 4,
  kInt32 = 5,
  kFixed64 = 6,
  kFixed32 = 7,
  kBool = 8,
  kString = 9,
  kGroup = 10,
  kMessage = 11,
  kBytes = 12,
  kUint32 = 13,
  kEnum = 14,
  kSfixed32 = 15,
  kSfixed64 = 16,
  kSint32 = 17,
  kSint64 = 18,
};

// Types that have a JSON form of their own.
enum class Form : std::uint8_t {
  kPlain,
  kUnsupported,  // by the native codec
  kEmpty,
  kTimestamp,
  kDuration,
  kFieldMask,
  kWrapper,
  kStruct,
  kValue,
  kListValue,
};

// Numbers by name. Open addressing; at most half full.
class Names {
 public:
  void build(std::vector<std::pair<std::string, std::int32_t>> entries);
  // A pointer to the number; null if there is no such name.
  const std::int32_t* find(std::string_view name) const {
    if (slots_.empty()) return nullptr;
    for (std::size_t index = hash(name) & mask_; slots_[index].is_taken; index = (index + 1) & mask_) {
      const Slot& slot = slots_[index];
      if (slot.name.size() == name.size() && std::memcmp(slot.name.data(), name.data(), name.size()) == 0) {
        return &slot.value;
      }
    }
    return nullptr;
  }

 private:
  struct Slot {
    bool is_taken = false;
    std::int32_t value = 0;
    std::string name;
  };

  static std::uint64_t hash(std::string_view name) {
    std::uint64_t first = 0, last = 0;
    if (name.size() >= 8) {
      std::memcpy(&first, name.data(), 8);
      std::memcpy(&last, name.data() + name.size() - 8, 8);
    } else if (!name.empty()) {
      std::memcpy(&first, name.data(), name.size());
    }
    const std::uint64_t mixed = (first ^ last * 3 ^ name.size()) * 0x9E3779B97F4A7C15ULL;
    return mixed ^ mixed >> 32;
  }

  std::vector<Slot> slots_;
  std::size_t mask_ = 0;
};

struct Enum {
  bool is_closed;
  bool is_null;
  Names names;
  std::vector<std::pair<std::int32_t, std::string>> texts;  // by number: the name as JSON; sorted

  // Null where the number has no name.
  const std::string* text(std::int32_t number) const;
};

struct Message;

struct Field {
  std::uint32_t number;
  Kind kind;
  bool is_repeated;
  bool is_map;
  bool is_packed;
  bool has_presence;
  bool takes_null;     // null is a value rather than an absent field
  std::int16_t oneof;  // index among the message's real oneofs; -1 for none
  std::uint16_t index;
  std::string key;         // `"name":`
  const Message* message;  // of messages, and the entry of maps
  const Enum* enumeration;

  std::uint32_t wire_type() const;  // of one value, not packed
  std::uint32_t tag() const { return number << 3 | wire_type(); }
  std::uint32_t packed_tag() const { return number << 3 | 2; }
};

// Sets of this many fields, and of this many oneofs, fit a `Seen`; larger messages are not supported.
constexpr std::size_t kMaxFields = 256;

struct Message {
  Form form;
  std::vector<Field> fields;  // by number
  Names names;                // to indices of fields
  std::vector<std::int16_t> by_number;

  const Field* find(std::uint32_t number) const {
    if (number < by_number.size()) return by_number[number] < 0 ? nullptr : &fields[by_number[number]];
    return fields.empty() || number > fields.back().number ? nullptr : search(number);
  }
  void index();

 private:
  const Field* search(std::uint32_t number) const;
};

struct Table {
  bool always_print;
  bool enum_numbers;
  bool ignore_unknown;
  std::vector<std::unique_ptr<Message>> messages;  // the first is what is read and written
  std::vector<std::unique_ptr<Enum>> enums;
};

// The fields of one message that have come.
class Seen {
 public:
  // Notes one; false if it had come already.
  bool add(std::size_t index) {
    std::uint64_t& word = words_[index >> 6];
    const std::uint64_t bit = 1ULL << (index & 63);
    const bool is_new = (word & bit) == 0;
    word |= bit;
    return is_new;
  }

 private:
  std::uint64_t words_[kMaxFields / 64] = {};
};

}  // namespace vorta
