// Bytes that grow at their end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

namespace vorta {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != small_) std::free(data_);
  }

  const char* data() const { return data_; }
  std::size_t size() const { return size_; }
  void truncate(std::size_t size) { size_ = size; }
  char& operator[](std::size_t index) { return data_[index]; }

  // Where up to `count` bytes may be written; `advance` then says how many were.
  char* room(std::size_t count) {
    if (capacity_ - size_ < count) grow(count);
    return data_ + size_;
  }
  void advance(std::size_t count) { size_ += count; }

  void put(char byte) {
    *room(1) = byte;
    ++size_;
  }

  void put(std::string_view bytes) {
    char* to = room(bytes.size());
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    size_ += bytes.size();
  }

  // Moves what stands from `at` on, so that `count` bytes can be written there.
  void widen(std::size_t at, std::size_t count) {
    room(count);
    std::memmove(data_ + at + count, data_ + at, size_ - at);
    size_ += count;
  }

 private:
  void grow(std::size_t count) {
    if (count > SIZE_MAX / 4 || capacity_ > SIZE_MAX / 4) throw std::bad_alloc();
    std::size_t capacity = capacity_ * 2;
    while (capacity - size_ < count) capacity *= 2;
    char* data = static_cast<char*>(std::realloc(data_ == small_ ? nullptr : data_, capacity));
    if (data == nullptr) throw std::bad_alloc();
    if (data_ == small_) std::memcpy(data, small_, size_);
    data_ = data;
    capacity_ = capacity;
  }

  char small_[2048];
  char* data_ = small_;
  std::size_t size_ = 0;
  std::size_t capacity_ = sizeof(small_);
};

}  // namespace vorta
