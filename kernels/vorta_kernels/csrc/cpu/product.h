// How a product of many rows is shared among threads, and what is done to its rows while they are at hand.
//
// Many rows: each piece of work is some rows and all outputs, so that what follows (a norm, an activation, codes) reads
// them from the caches. Few rows: a piece is some outputs of all rows, and what follows comes after all of them. The
// arithmetic of a row is the same in both.
#pragma once

#include <algorithm>
#include <thread>

#include "float_gemm.h"
#include "float_tile_gemm.h"
#include "gemm.h"
#include "op.h"
#include "scratch.h"
#include "tile_gemm.h"

namespace vorta {

constexpr int64_t kManyRows = 96;
constexpr int64_t kPieceRows = 24;          // two groups of what the kernels take at once
constexpr int64_t kTilePieceRows = 64;      // where the processor multiplies tiles, weights are what a piece waits for
constexpr int64_t kPieceWork = 2 << 20;     // multiplications of a piece by outputs: some 10 us
constexpr int64_t kCachedBytes = 24 << 10;  // weights that stay in the first cache while rows meet them

// 8-bit rows with a factor each, or one for each block, and weights in blocks.
struct BlockProduct {
  BlockProduct(const Context& context, int64_t num_outputs)
      : x(context.input(0)), factors(context.input(1)), codes(context.input(2)), scales(context.input(3)),
        bias(context.input(4)), rows(x.rows()), num_outputs(num_outputs) {}

  // Checks the shapes; `bits` is 4 or 8.
  bool fits(int64_t block, int bits) {
    const int64_t size = x.columns(), tiles = num_tiles();
    if (size % block != 0 || codes.rows() * codes.columns() != tiles * kTile * size * bits / 8 ||
        scales.rows() * scales.columns() != tiles * kTile * (size / block) || factors.rows() != rows ||
        (factors.columns() != 1 && factors.columns() != size / block))
      return false;
    weights = {static_cast<const uint8_t*>(codes.data), scales.floats(), bias.floats(), num_outputs, size, block, bits};
    return true;
  }

  int64_t num_tiles() const { return (num_outputs + kTile - 1) / kTile; }
  int64_t tile_bytes() const { return kTile * weights.num_inputs * weights.bits / 8; }
  int64_t work_of_tile() const { return kTile * weights.num_inputs; }
  int64_t piece_rows() const { return on_tiles(rows, weights) ? kTilePieceRows : kPieceRows; }
  int64_t tiles_at_once() const {
    const int64_t cached = kCachedBytes / std::max<int64_t>(1, tile_bytes());
    return on_tiles(rows, weights) ? std::max<int64_t>(2, cached / 2 * 2) : std::max<int64_t>(1, cached);
  }

  // These rows as they are multiplied.
  const int32_t* prepare(int64_t first, int64_t count) const {
    int32_t* packed = scratch_of<0, int32_t>(packed_size(count, weights));
    pack_rows(row(first), count, weights, packed);
    return packed;
  }

  void multiply_rows(int64_t first, int64_t count, const int32_t* packed, int64_t tile, int64_t end, float* out) const {
    multiply_rows(first, count, packed, tile, end, out + tile * kTile, num_outputs);
  }

  // The same with the first tile's outputs at `out`, rows `stride` apart.
  void multiply_rows(int64_t first, int64_t count, const int32_t* packed, int64_t tile, int64_t end, float* out,
                     int64_t stride) const {
    const int64_t per_row = factors.columns();
    multiply(packed, factors.floats() + first * per_row, per_row != 1, count, weights, tile, end, out, stride);
  }

  const int8_t* row(int64_t index) const { return static_cast<const int8_t*>(x.data) + index * weights.num_inputs; }

  const Tensor x, factors, codes, scales, bias;
  const int64_t rows, num_outputs;
  BlockWeights weights{};
};

// Rows of a piece of a product of floats on tiles. Every piece makes the weights' parts anew, so it should be long, but each
// thread wants one.
inline int64_t float_piece_rows(int64_t rows) {
  static const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return std::clamp<int64_t>((rows / threads + 31) / 32 * 32, 64, 256);
}

// Rows and weights of floats.
struct TileProduct {
  TileProduct(const Context& context, int64_t num_outputs)
      : x(context.input(0)), values(context.input(1)), bias(context.input(2)), rows(x.rows()), num_outputs(num_outputs) {
    weights = {values.floats(), bias.floats(), num_outputs, x.columns()};
  }

  // Checks the shapes.
  bool fits() const {
    return values.rows() * values.columns() == num_tiles() * kTile * x.columns() &&
           (!bias || bias.columns() == num_outputs);
  }

  int64_t num_tiles() const { return (num_outputs + kTile - 1) / kTile; }
  int64_t tile_bytes() const { return kTile * weights.num_inputs * 4; }
  int64_t work_of_tile() const { return kTile * weights.num_inputs * (floats_on_tiles() ? 1 : 4); }
  int64_t piece_rows() const { return floats_on_tiles() ? float_piece_rows(rows) : kPieceRows; }
  int64_t tiles_at_once() const {
    return floats_on_tiles() ? num_tiles() : std::max<int64_t>(1, kCachedBytes / std::max<int64_t>(1, tile_bytes()));
  }

#if VORTA_AMX
  const int32_t* prepare(int64_t first, int64_t count) const {
    if (!floats_on_tiles() || rows >= kManyRows) return nullptr;
    return reinterpret_cast<const int32_t*>(split_rows(row(first), count, weights.num_inputs));
  }

  void multiply_rows(int64_t first, int64_t count, const int32_t* packed, int64_t tile, int64_t end, float* out) const {
    if (floats_on_tiles())
      multiply_on_tiles(row(first), reinterpret_cast<const uint16_t*>(packed), count, weights, tile, end, out);
    else
      multiply(row(first), count, weights, tile, end, out);
  }
#else
  const int32_t* prepare(int64_t, int64_t) const { return nullptr; }

  void multiply_rows(int64_t first, int64_t count, const int32_t*, int64_t tile, int64_t end, float* out) const {
    multiply(row(first), count, weights, tile, end, out);
  }
#endif

  const float* row(int64_t index) const { return x.floats() + index * weights.num_inputs; }

  const Tensor x, values, bias;
  const int64_t rows, num_outputs;
  TileWeights weights{};
};

// Many rows in pieces: as many of at most `most` rows as all threads are done with at once.
struct RowPieces {
  RowPieces(int64_t num_rows, int64_t most) : rows(num_rows), count((num_rows + most - 1) / most) {
    static const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
    if (count > threads) count = (count + threads - 1) / threads * threads;
  }
  int64_t first(int64_t piece) const { return piece * rows / count; }

  int64_t rows, count;
};

// Tiles of a piece when rows are few: pieces of about equal work, small enough that a thread which is held up leaves the
// rest to the others.
inline int64_t tiles_per_piece(int64_t rows, int64_t work_of_tile) {
  return std::max<int64_t>(1, kPieceWork / std::max<int64_t>(1, rows * work_of_tile));
}

// Computes the product and calls finish(row, values) for every row. The values go to `out` [rows, num_outputs], or where
// that is null to memory that is used again.
template <typename Product, typename Finish>
void compute_product(const Context& context, const Product& product, float* out, const Finish& finish) {
  const int64_t rows = product.rows, outputs = product.num_outputs, tiles = product.num_tiles();
  const int64_t work = rows * tiles * product.work_of_tile() / 64;
  if (rows >= kManyRows) {
    const int64_t step = product.tiles_at_once();
    const RowPieces pieces(rows, product.piece_rows());
    context.share(pieces.count, work, [&](int64_t piece) {
      const int64_t first = pieces.first(piece), count = pieces.first(piece + 1) - first;
      float* values = out != nullptr ? out + first * outputs : scratch_of<1, float>(count * outputs);
      const int32_t* packed = product.prepare(first, count);
      for (int64_t tile = 0; tile < tiles; tile += step)
        product.multiply_rows(first, count, packed, tile, std::min(tile + step, tiles), values);
      for (int64_t row = 0; row < count; ++row) finish(first + row, values + row * outputs);
    });
    return;
  }
  float* values = out != nullptr ? out : scratch_of<2, float>(rows * outputs);
  const int32_t* packed = product.prepare(0, rows);
  const int64_t per_piece = tiles_per_piece(rows, product.work_of_tile());
  context.share_in_runs((tiles + per_piece - 1) / per_piece, work, [&](int64_t piece) {
    const int64_t first = piece * per_piece;
    product.multiply_rows(0, rows, packed, first, std::min(first + per_piece, tiles), values);
  });
  context.for_each(rows, rows * outputs, [&](int64_t row) { finish(row, values + row * outputs); });
}

}  // namespace vorta
