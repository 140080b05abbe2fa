// Memory that a thread keeps from one call to the next.
#pragma once

#include <cstdint>
#include <vector>

namespace vorta {

// Of the calling thread, one for each use and type, from a line of the cache on: tiles are read in lines. Uses 0 to 4 are
// those of products and operators, 5 to 7 those of float_tile_gemm.cpp.
template <int kUse, typename Element>
Element* scratch_of(int64_t size) {
  constexpr uintptr_t kLineBytes = 64;
  static thread_local std::vector<Element> memory;
  const size_t needed = size + kLineBytes / sizeof(Element);
  if (memory.size() < needed) memory.resize(needed);
  return reinterpret_cast<Element*>((reinterpret_cast<uintptr_t>(memory.data()) + kLineBytes - 1) & ~(kLineBytes - 1));
}

}  // namespace vorta
