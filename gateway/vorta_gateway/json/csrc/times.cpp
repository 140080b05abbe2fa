#include "times.hpp"

#include "numbers.hpp"

namespace vorta {
namespace {

constexpr std::int64_t kMinTimestamp = -62'135'596'800;  // 0001-01-01T00:00:00Z
constexpr std::int64_t kMaxTimestamp = 253'402'300'799;  // 9999-12-31T23:59:59Z
constexpr std::int64_t kMaxDuration = 315'576'000'000;
constexpr std::int32_t kGiga = 1'000'000'000;
constexpr std::int64_t kDaySeconds = 86'400;

bool is_digit(char character) { return character >= '0' && character <= '9'; }
bool is_lower(char character) { return character >= 'a' && character <= 'z'; }
bool is_upper(char character) { return character >= 'A' && character <= 'Z'; }
bool is_path(char character) {
  return is_lower(character) || is_upper(character) || is_digit(character) || character == '_' || character == '.';
}

bool is_leap(int year) { return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0); }

int days_in(int year, int month) {
  static constexpr int kDays[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  return kDays[month - 1] + (month == 2 && is_leap(year) ? 1 : 0);
}

// Days from 1970-01-01, in the calendar that begins its years in March (Hinnant's algorithms).
std::int64_t days_from_date(int year, int month, int day) {
  year -= month <= 2;
  const int era = (year >= 0 ? year : year - 399) / 400;
  const int year_of_era = year - era * 400;
  const int day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  const int day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
  return std::int64_t{era} * 146'097 + day_of_era - 719'468;
}

struct Date {
  int year, month, day;
};

Date date_from_days(std::int64_t days) {
  days += 719'468;
  const std::int64_t era = (days >= 0 ? days : days - 146'096) / 146'097;
  const int day_of_era = static_cast<int>(days - era * 146'097);
  const int year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36'524 - day_of_era / 146'096) / 365;
  const int day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const int shifted = (5 * day_of_year + 2) / 153;
  const int month = shifted < 10 ? shifted + 3 : shifted - 9;
  const int year = year_of_era + static_cast<int>(era) * 400 + (month <= 2 ? 1 : 0);
  return {year, month, day_of_year - (153 * shifted + 2) / 5 + 1};
}

// Reads a text from its beginning.
struct Scanner {
  std::string_view rest;

  bool take(char wanted) {
    if (rest.empty() || rest.front() != wanted) return false;
    rest.remove_prefix(1);
    return true;
  }

  bool number(std::size_t num_digits, int& value) {
    if (rest.size() < num_digits) return false;
    value = 0;
    for (std::size_t index = 0; index < num_digits; ++index) {
      if (!is_digit(rest[index])) return false;
      value = value * 10 + (rest[index] - '0');
    }
    rest.remove_prefix(num_digits);
    return true;
  }

  // One to nine digits, as billionths.
  bool fraction(std::int32_t& nanos) {
    std::int32_t unit = kGiga;
    nanos = 0;
    while (!rest.empty() && is_digit(rest.front())) {
      if (unit == 1) return false;
      unit /= 10;
      nanos += unit * (rest.front() - '0');
      rest.remove_prefix(1);
    }
    return unit != kGiga;
  }
};

void put_digits(Buffer& out, int value, int num_digits) {
  char* const to = out.room(static_cast<std::size_t>(num_digits));
  for (int index = num_digits - 1; index >= 0; --index) {
    to[index] = static_cast<char>('0' + value % 10);
    value /= 10;
  }
  out.advance(static_cast<std::size_t>(num_digits));
}

void put_fraction(Buffer& out, std::int32_t nanos) {
  if (nanos == 0) return;
  out.put('.');
  if (nanos % 1'000'000 == 0) {
    put_digits(out, nanos / 1'000'000, 3);
  } else if (nanos % 1'000 == 0) {
    put_digits(out, nanos / 1'000, 6);
  } else {
    put_digits(out, nanos, 9);
  }
}

bool read_offset(Scanner& scanner, std::int64_t& seconds) {
  seconds = 0;
  if (scanner.take('Z') || scanner.take('z')) return true;
  const bool is_negative = scanner.take('-');
  int hours, minutes;
  if (!is_negative && !scanner.take('+')) return false;
  if (!scanner.number(2, hours) || !scanner.take(':') || !scanner.number(2, minutes)) return false;
  seconds = (hours * 3600 + minutes * 60) * (is_negative ? -1 : 1);
  return true;
}

}  // namespace

bool read_timestamp(std::string_view text, Time& time) {
  Scanner scanner{text};
  int year, month, day, hour, minute, second;
  std::int64_t offset;
  if (!scanner.number(4, year) || !scanner.take('-') || !scanner.number(2, month) || !scanner.take('-')) return false;
  if (!scanner.number(2, day) || !(scanner.take('T') || scanner.take('t'))) return false;
  if (!scanner.number(2, hour) || !scanner.take(':') || !scanner.number(2, minute) || !scanner.take(':')) return false;
  if (!scanner.number(2, second)) return false;
  if (scanner.take('.') && !scanner.fraction(time.nanos)) return false;
  if (!read_offset(scanner, offset) || !scanner.rest.empty()) return false;
  if (year < 1 || month < 1 || month > 12 || day < 1 || day > days_in(year, month)) return false;
  if (hour > 23 || minute > 59 || second > 59) return false;
  time.seconds = days_from_date(year, month, day) * kDaySeconds + hour * 3600 + minute * 60 + second - offset;
  return time.seconds >= kMinTimestamp && time.seconds <= kMaxTimestamp;
}

bool put_timestamp(Buffer& out, const Time& time) {
  if (time.seconds < kMinTimestamp || time.seconds > kMaxTimestamp) return false;
  if (time.nanos < 0 || time.nanos >= kGiga) return false;
  const std::int64_t shifted = time.seconds - kMinTimestamp;  // not negative, and of the same time of day
  const int second = static_cast<int>(shifted % kDaySeconds);
  const Date date = date_from_days((time.seconds - second) / kDaySeconds);
  out.put('"');
  put_digits(out, date.year, 4);
  out.put('-');
  put_digits(out, date.month, 2);
  out.put('-');
  put_digits(out, date.day, 2);
  out.put('T');
  put_digits(out, second / 3600, 2);
  out.put(':');
  put_digits(out, second / 60 % 60, 2);
  out.put(':');
  put_digits(out, second % 60, 2);
  put_fraction(out, time.nanos);
  out.put("Z\"");
  return true;
}

bool read_duration(std::string_view text, Time& time) {
  Scanner scanner{text};
  const bool is_negative = scanner.take('-');
  std::size_t num_digits = 0;
  while (!scanner.rest.empty() && is_digit(scanner.rest.front())) {
    if (++num_digits > 12) return false;
    time.seconds = time.seconds * 10 + (scanner.rest.front() - '0');
    scanner.rest.remove_prefix(1);
  }
  if (num_digits == 0 || time.seconds > kMaxDuration) return false;
  if (scanner.take('.') && !scanner.fraction(time.nanos)) return false;
  if (is_negative) {
    time.seconds = -time.seconds;
    time.nanos = -time.nanos;
  }
  return scanner.take('s') && scanner.rest.empty();
}

bool put_duration(Buffer& out, const Time& time) {
  if (time.seconds > kMaxDuration || time.seconds < -kMaxDuration) return false;
  if (time.nanos >= kGiga || time.nanos <= -kGiga) return false;
  if ((time.seconds > 0 && time.nanos < 0) || (time.seconds < 0 && time.nanos > 0)) return false;
  out.put('"');
  if (time.seconds < 0 || time.nanos < 0) out.put('-');
  put_whole(out, time.seconds < 0 ? -time.seconds : time.seconds);
  put_fraction(out, time.nanos < 0 ? -time.nanos : time.nanos);
  out.put("s\"");
  return true;
}

bool put_snake_case(Buffer& out, std::string_view path) {
  for (const char character : path) {
    if (!is_path(character)) return false;
    if (is_upper(character)) out.put('_');
    out.put(is_upper(character) ? static_cast<char>(character | 0x20) : character);
  }
  return true;
}

bool put_camel_case(Buffer& out, std::string_view path) {
  for (std::size_t index = 0; index < path.size(); ++index) {
    const char character = path[index];
    if (!is_path(character) || is_upper(character)) return false;
    if (character != '_') {
      out.put(character);
    } else if (++index < path.size() && is_lower(path[index])) {
      out.put(static_cast<char>(path[index] & ~0x20));
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace vorta
