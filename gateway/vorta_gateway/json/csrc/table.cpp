#include "table.hpp"

#include <algorithm>

#include "wire.hpp"

namespace vorta {

void Names::build(std::vector<std::pair<std::string, std::int32_t>> entries) {
  std::size_t size = 4;
  while (size < entries.size() * 2 + 1) size *= 2;
  slots_.assign(size, Slot());
  mask_ = size - 1;
  for (auto& [name, value] : entries) {
    std::size_t index = hash(name) & mask_;
    while (slots_[index].is_taken && slots_[index].name != name) index = (index + 1) & mask_;
    slots_[index] = {true, value, std::move(name)};
  }
}

const std::string* Enum::text(std::int32_t number) const {
  if (number >= 0 && static_cast<std::size_t>(number) < texts.size() && texts[number].first == number) {
    return &texts[number].second;  // numbered without gaps, as most are
  }
  const auto found = std::lower_bound(texts.begin(), texts.end(), number,
                                      [](const auto& entry, std::int32_t wanted) { return entry.first < wanted; });
  return found != texts.end() && found->first == number ? &found->second : nullptr;
}

std::uint32_t Field::wire_type() const {
  switch (kind) {
    case Kind::kDouble:
    case Kind::kFixed64:
    case Kind::kSfixed64:
      return kFixed64;
    case Kind::kFloat:
    case Kind::kFixed32:
    case Kind::kSfixed32:
      return kFixed32;
    case Kind::kString:
    case Kind::kBytes:
    case Kind::kMessage:
      return kBytes;
    case Kind::kGroup:
      return 3;
    default:
      return kVarint;
  }
}

void Message::index() {
  constexpr std::uint32_t kMaxDense = 512;
  const std::uint32_t last = fields.empty() ? 0 : fields.back().number;
  by_number.assign(std::min(last, kMaxDense) + 1, -1);
  for (Field& field : fields) {
    field.index = static_cast<std::uint16_t>(&field - fields.data());
    if (field.number < by_number.size()) by_number[field.number] = static_cast<std::int16_t>(field.index);
  }
}

const Field* Message::search(std::uint32_t number) const {
  const auto found = std::lower_bound(fields.begin(), fields.end(), number, [](const Field& field, std::uint32_t wanted) {
    return field.number < wanted;
  });
  return found != fields.end() && found->number == number ? &*found : nullptr;
}

}  // namespace vorta
