// Where a packed token belongs; plain C++.
#pragma once

#include <cstdint>

#include "device.h"

namespace vorta {

// The sequence that a token belongs to: the last that begins at or before it, which empty ones at the same place never
// are. starts[0 .. num_seqs] is ascending from 0, and token < starts[num_seqs].
VORTA_BOTH int owner_of(const int* starts, int num_seqs, int token) {
  int low = 0, high = num_seqs - 1;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (starts[middle] <= token)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The place in the cache of a sequence's token; -1 (write nothing) where the sequence has no block for it.
VORTA_BOTH int slot_of(const int* blocks, int max_blocks, int block_size, int position) {
  const int index = position / block_size;
  if (index >= max_blocks) return -1;
  const int block = blocks[index];
  return block < 0 ? -1 : block * block_size + position % block_size;
}

}  // namespace vorta
