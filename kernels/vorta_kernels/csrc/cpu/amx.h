// Tiles of 16 rows of 64 bytes that the processor multiplies (AMX), where the compiler targets them and the system lets
// this process use them. VORTA_AMX says whether there is code for them at all.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define VORTA_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define VORTA_AMX 0
#endif

namespace vorta {

#if VORTA_AMX

// Whether the system saves the tiles of this process's threads: Linux wants to be asked, since they are 8 KB each.
inline bool has_tiles() {
  static const bool has = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}

// The calling thread's eight tiles; given back at the end. Others in the process shape theirs as they like, so that every
// piece of work begins with one. Tiles 0 to 3 are sums, 4 and 5 rows of `bytes`, 6 and 7 what these are multiplied with,
// four bytes of 16 columns in a line.
class Tiles {
 public:
  explicit Tiles(int bytes = 64) {
    struct alignas(64) Shape {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) {
      shape.bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? bytes : 64);
      shape.rows[tile] = static_cast<uint8_t>(tile >= 6 ? bytes / 4 : 16);
    }
    _tile_loadconfig(&shape);
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }
};

#else

inline constexpr bool has_tiles() { return false; }

#endif

}  // namespace vorta
