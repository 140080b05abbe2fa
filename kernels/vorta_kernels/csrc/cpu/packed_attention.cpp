#include "packed_attention.h"

#include <algorithm>

#include "vec.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define VORTA_HALVES 1
#include <immintrin.h>
#endif

// Queries lie in the lanes of vectors, 16 (query, head) pairs to a tile, and keys follow each other. So the softmax of 16
// queries needs no sums across lanes, and only queries are transposed.
namespace vorta {
namespace {

constexpr int64_t kKeys = 256;  // keys whose scores are held at once: 16 KiB of scores
constexpr int64_t kRows = 128;  // (query, head) pairs of a piece, about

constexpr float kNone = -1e30f;    // the top of what has seen no key
constexpr float kHidden = -2e30f;  // the score of a key that is not seen

constexpr float kLog2OfE = 1.44269504088896341f;

inline int64_t tiles_of(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

// 2^x with a relative error below 1.5e-7, for x <= 0; what is below -126 gives 0.
inline Vec power_of_two(Vec x) {
  const VecInt is_tiny = x < -126.0f;
  const Vec shifted = x + kRounder;
  const Vec rest = x - (shifted - kRounder);
  Vec p = 1.3276466634124517e-3f * rest + 9.675540961325169e-3f;
  p = p * rest + 5.550713464617729e-2f;
  p = p * rest + 0.24022120237350464f;
  p = p * rest + 0.6931469440460205f;
  p = p * rest + 1.0f;
  const VecInt scaled = reinterpret_cast<VecInt>(p) + (reinterpret_cast<VecInt>(shifted) << 23);
  return reinterpret_cast<Vec>(scaled & ~is_tiny);
}

// A few numbers, for which a call of memcpy takes longer than the copy.
inline void copy(const float* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  for (; i < size; ++i) to[i] = from[i];
}

// scores[k, 0:16] = keys[k] . 16 queries, which lie as [dim, 16]. A dim that is known (kDim, 0 for any) leaves one address
// to count up instead of one for each key; inlined, the compiler keeps all of them in vector registers.
template <int kCount, int kDim>
__attribute__((noinline)) void score_tile(const float* queries, const float* keys, int64_t any_dim, float* scores) {
  const int64_t dim = kDim > 0 ? kDim : any_dim;
  Vec sums[kCount] = {};
  for (int64_t i = 0; i < dim; ++i) {
    const Vec query = load(queries + i * kLanes);
    for (int k = 0; k < kCount; ++k) sums[k] += query * keys[k * dim + i];
  }
  for (int k = 0; k < kCount; ++k) store(scores + k * kLanes, sums[k]);
}

// sums[r, 0:16 kWidth] += weights[j, r] values[j, 0:16 kWidth] for kCount of a tile's rows.
template <int kCount, int kWidth>
void mix_tile(const float* weights, const float* values, int64_t count, int64_t dim, float* sums) {
  Vec totals[kCount][kWidth];
  for (int r = 0; r < kCount; ++r)
    for (int w = 0; w < kWidth; ++w) totals[r][w] = load(sums + r * dim + w * kLanes);
  for (int64_t j = 0; j < count; ++j)
    for (int w = 0; w < kWidth; ++w) {
      const Vec part = load(values + j * dim + w * kLanes);
      for (int r = 0; r < kCount; ++r) totals[r][w] += part * weights[j * kLanes + r];
    }
  for (int r = 0; r < kCount; ++r)
    for (int w = 0; w < kWidth; ++w) store(sums + r * dim + w * kLanes, totals[r][w]);
}

// The same for all columns and `rows` of a tile, or a few more.
void mix(const float* weights, int64_t rows, const float* values, int64_t count, int64_t dim, float* sums) {
  for (int64_t r = 0; r < rows;) {
    const int64_t take = rows - r > 4 ? 8 : 4;
    int64_t column = 0;
    for (; column + 2 * kLanes <= dim; column += 2 * kLanes)
      (take == 8 ? mix_tile<8, 2> : mix_tile<4, 2>)(weights + r, values + column, count, dim, sums + r * dim + column);
    for (; column + kLanes <= dim; column += kLanes)
      (take == 8 ? mix_tile<8, 1> : mix_tile<4, 1>)(weights + r, values + column, count, dim, sums + r * dim + column);
    for (; column < dim; ++column)
      for (int64_t j = 0; j < count; ++j)
        for (int64_t row = r; row < r + take; ++row)
          sums[row * dim + column] += weights[j * kLanes + row] * values[j * dim + column];
    r += take;
  }
}

// scores = 2^(scores - top), [count, 16]; returns their sums. Not inlined, so that its constants stay in registers.
__attribute__((noinline)) Vec to_weights(float* scores, int64_t count, Vec top) {
  Vec sums = Vec{};
  for (int64_t j = 0; j < count; ++j) {
    const Vec weight = power_of_two(load(scores + j * kLanes) - top);
    store(scores + j * kLanes, weight);
    sums += weight;
  }
  return sums;
}

template <int kDim>
void score_keys(const float* queries, const float* keys, int64_t count, int64_t dim, float* scores) {
  for (int64_t k = 0; k < count;) {
    const int64_t left = count - k;
    // Rather two halves than a full group and a few.
    const int64_t take = left > 12 && left < 24 ? (left + 1) / 2 : std::min<int64_t>(left, 12);
    switch (take) {
#define VORTA_SCORE(number)                                                      \
  case number:                                                                   \
    score_tile<number, kDim>(queries, keys + k * dim, dim, scores + k * kLanes); \
    break;
      VORTA_SCORE(1) VORTA_SCORE(2) VORTA_SCORE(3) VORTA_SCORE(4) VORTA_SCORE(5) VORTA_SCORE(6)
      VORTA_SCORE(7) VORTA_SCORE(8) VORTA_SCORE(9) VORTA_SCORE(10) VORTA_SCORE(11) VORTA_SCORE(12)
#undef VORTA_SCORE
    }
    k += take;
  }
}

#if defined(VORTA_HALVES)

constexpr bool kHasHalves = true;

// Two numbers of 16 bits (bfloat16) in each lane, a's below.
inline VecInt pairs_of(Vec a, Vec b) {
  const VecInt low = reinterpret_cast<VecInt>(a) + 0x8000, high = reinterpret_cast<VecInt>(b) + 0x8000;
  return ((low >> 16) & 0xffff) | (high & static_cast<int32_t>(0xffff0000));
}

inline void store_pairs(int32_t* to, VecInt value) { std::memcpy(to, &value, sizeof value); }

// sums[lane] += the products of both numbers of a lane with the pair at `pair`.
inline Vec add_pairs(Vec sums, __m512i lanes, const int32_t* pair) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(lanes),
                                                reinterpret_cast<__m512bh>(_mm512_set1_epi32(*pair))));
}

// The same products of numbers in pairs: queries [dim / 2, 16], keys [., dim / 2], values [count / 2, dim] and weights
// [count / 2, 16] of two keys each.
template <int kCount, int kDim>
__attribute__((noinline)) void score_pairs(const int32_t* queries, const int32_t* keys, int64_t any_dim, float* scores) {
  const int64_t half = (kDim > 0 ? kDim : any_dim) / 2;
  Vec sums[kCount] = {};
  for (int64_t i = 0; i < half; ++i) {
    const __m512i query = _mm512_loadu_si512(queries + i * kLanes);
    for (int k = 0; k < kCount; ++k) sums[k] = add_pairs(sums[k], query, keys + k * half + i);
  }
  for (int k = 0; k < kCount; ++k) store(scores + k * kLanes, sums[k]);
}

template <int kCount, int kWidth>
void mix_pairs(const int32_t* weights, const int32_t* values, int64_t pairs, int64_t dim, float* sums) {
  Vec totals[kCount][kWidth];
  for (int r = 0; r < kCount; ++r)
    for (int w = 0; w < kWidth; ++w) totals[r][w] = load(sums + r * dim + w * kLanes);
  for (int64_t j = 0; j < pairs; ++j)
    for (int w = 0; w < kWidth; ++w) {
      const __m512i part = _mm512_loadu_si512(values + j * dim + w * kLanes);
      for (int r = 0; r < kCount; ++r) totals[r][w] = add_pairs(totals[r][w], part, weights + j * kLanes + r);
    }
  for (int r = 0; r < kCount; ++r)
    for (int w = 0; w < kWidth; ++w) store(sums + r * dim + w * kLanes, totals[r][w]);
}

void mix_all_pairs(const int32_t* weights, int64_t rows, const int32_t* values, int64_t pairs, int64_t dim, float* sums) {
  for (int64_t r = 0; r < rows;) {
    const int64_t take = rows - r > 4 ? 8 : 4;
    int64_t column = 0;
    for (; column + 2 * kLanes <= dim; column += 2 * kLanes)
      (take == 8 ? mix_pairs<8, 2> : mix_pairs<4, 2>)(weights + r, values + column, pairs, dim, sums + r * dim + column);
    if (column < dim)
      (take == 8 ? mix_pairs<8, 1> : mix_pairs<4, 1>)(weights + r, values + column, pairs, dim, sums + r * dim + column);
    r += take;
  }
}

template <int kDim>
void score_all_pairs(const int32_t* queries, const int32_t* keys, int64_t count, int64_t dim, float* scores) {
  for (int64_t k = 0; k < count;) {
    const int64_t left = count - k;
    const int64_t take = left > 12 && left < 24 ? (left + 1) / 2 : std::min<int64_t>(left, 12);
    switch (take) {
#define VORTA_SCORE(number)                                                           \
  case number:                                                                        \
    score_pairs<number, kDim>(queries, keys + k * dim / 2, dim, scores + k * kLanes); \
    break;
      VORTA_SCORE(1) VORTA_SCORE(2) VORTA_SCORE(3) VORTA_SCORE(4) VORTA_SCORE(5) VORTA_SCORE(6)
      VORTA_SCORE(7) VORTA_SCORE(8) VORTA_SCORE(9) VORTA_SCORE(10) VORTA_SCORE(11) VORTA_SCORE(12)
#undef VORTA_SCORE
    }
    k += take;
  }
}

// Weights 2^(scores - top) of two keys each, in place of the scores; returns their sums.
__attribute__((noinline)) Vec to_weight_pairs(float* scores, int64_t count, Vec top) {
  Vec sums = Vec{};
  auto* to = reinterpret_cast<int32_t*>(scores);
  for (int64_t j = 0; j < count; j += 2, to += kLanes) {
    const Vec first = power_of_two(load(scores + j * kLanes) - top);
    const Vec second = j + 1 < count ? power_of_two(load(scores + (j + 1) * kLanes) - top) : Vec{};
    sums += first + second;
    store_pairs(to, pairs_of(first, second));
  }
  return sums;
}

// Numbers in place as pairs: of neighbours in a row of 16 k numbers, or of two rows [dim] (the second may be null).
inline void pair_neighbours(const float* from, int64_t size, int32_t* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    std::memcpy(to + i / 2, &halves, sizeof halves);
  }
}
inline void pair_rows(const float* first, const float* second, int64_t size, int32_t* to) {
  for (int64_t i = 0; i < size; i += kLanes)
    store_pairs(to + i, pairs_of(load(first + i), second != nullptr ? load(second + i) : Vec{}));
}

#else

constexpr bool kHasHalves = false;

template <int kDim>
void score_all_pairs(const int32_t*, const int32_t*, int64_t, int64_t, float*) {}
void mix_all_pairs(const int32_t*, int64_t, const int32_t*, int64_t, int64_t, float*) {}
Vec to_weight_pairs(float*, int64_t, Vec) { return Vec{}; }
void pair_neighbours(const float*, int64_t, int32_t*) {}
void pair_rows(const float*, const float*, int64_t, int32_t*) {}

#endif

// One memory for all that a piece needs, given out part by part.
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    if (static_cast<int64_t>(memory().size()) < size) memory().resize(size);
    next_ = memory().data();
  }
  float* take(int64_t size) {
    float* out = next_;
    next_ += size;
    return out;
  }

 private:
  static std::vector<float>& memory() {
    static thread_local std::vector<float> memory;
    return memory;
  }
  float* next_;
};

}  // namespace

PackedAttention::PackedAttention(const PackedAttentionShape& shape, const PackedAttentionData& data)
    : shape_(shape), data_(data) {
  const int64_t per_block = queries_per_block();
  for (int64_t text = 0; text < data.num_texts; ++text) {
    const int64_t start = data.offsets[text], length = data.offsets[text + 1] - start;
    // Of a causal text the last block sees most: it goes first, so that no long piece is left for the end.
    for (int64_t block = (length + per_block - 1) / per_block; block-- > 0;)
      blocks_.push_back({start, length, block * per_block});
    work_ += length * length * shape.num_heads * shape.head_dim * 2;
  }
}

int64_t PackedAttention::queries_per_block() const {
  return std::max<int64_t>(1, kRows / (shape_.num_heads / shape_.num_kv_heads));
}

void PackedAttention::prepare(const float* x, const float* norm, int64_t position, float* to) const {
  const int64_t dim = shape_.head_dim, half = dim / 2;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (int64_t i = 0; i < dim; ++i) squares += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(dim) + shape_.epsilon);
    for (int64_t i = 0; i < dim; ++i) to[i] = x[i] * inverse * norm[i];
    x = to;
  }
  if (data_.cosines == nullptr) {
    if (x != to) std::copy(x, x + dim, to);
    return;
  }
  const float *cosines = data_.cosines + position * half, *sines = data_.sines + position * half;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    to[i] = first * cosines[i] - second * sines[i];
    to[i + half] = second * cosines[i] + first * sines[i];
  }
}

void PackedAttention::pack_queries(const Block& block, int64_t head, int64_t first_row, int64_t rows, float* rest,
                                   float* to) const {
  const int64_t dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t width = (shape_.num_heads + 2 * shape_.num_kv_heads) * dim;
  const bool is_plain = data_.query_norm == nullptr && data_.cosines == nullptr;
  const float scale = shape_.scale * kLog2OfE;
  const float* lines[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    const int64_t row = first_row + std::min(r, rows - 1), position = block.first + row / group;
    lines[r] = data_.qkv + (block.start + position) * width + (head * group + row % group) * dim;
    if (is_plain) continue;
    prepare(lines[r], data_.query_norm, position, rest + r * dim);
    lines[r] = rest + r * dim;
  }
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vec square[kLanes];
    for (int r = 0; r < kLanes; ++r) square[r] = load(lines[r] + i);
    transpose(square);
    for (int r = 0; r < kLanes; ++r) store(to + (i + r) * kLanes, square[r] * scale);
  }
  for (; i < dim; ++i)
    for (int r = 0; r < kLanes; ++r) to[i * kLanes + r] = lines[r][i] * scale;
}

void PackedAttention::add_bias(const Block& block, int64_t head, int64_t first_row, int64_t begin, int64_t count,
                               float* scores) const {
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  for (int r = 0; r < kLanes; ++r) {
    const int64_t row = first_row + r, position = block.first + row / group;
    if (position >= block.length) break;
    const float* bias =
        data_.bias + (head * group + row % group) * shape_.bias_stride + shape_.reach - 1 - position + begin;
    for (int64_t j = 0; j < count; ++j) scores[j * kLanes + r] += bias[j] * kLog2OfE;
  }
}

void PackedAttention::attend(int64_t piece) const {
  const Block block = blocks_[piece / shape_.num_kv_heads];
  const int64_t head = piece % shape_.num_kv_heads;
  const int64_t dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t num_queries = std::min(queries_per_block(), block.length - block.first);
  const int64_t rows = num_queries * group, tiles = tiles_of(rows);
  const int64_t width = (shape_.num_heads + 2 * shape_.num_kv_heads) * dim;
  const float* keys = data_.qkv + block.start * width + (shape_.num_heads + head) * dim;
  const float* values = keys + shape_.num_kv_heads * dim;
  const bool is_plain = data_.key_norm == nullptr && data_.cosines == nullptr;

  // What the block's queries see together.
  const int64_t last = block.first + num_queries - 1;
  const int64_t first_key = shape_.window >= 0 ? std::max<int64_t>(0, block.first - shape_.window) : 0;
  int64_t end_key = shape_.is_causal ? last + 1 : block.length;
  if (shape_.window >= 0) end_key = std::min(end_key, last + shape_.window + 1);
  const int64_t most_keys = std::min(kKeys, end_key - first_key);

  const bool uses_halves = kHasHalves && shape_.uses_halves && dim % kLanes == 0;

  const int64_t tile_size = dim * kLanes;
  Scratch scratch(2 * most_keys * dim + most_keys * kLanes + tiles * (2 * tile_size + 2 * kLanes) + tile_size);
  float* near_keys = scratch.take(most_keys * dim);
  float* near_values = scratch.take(most_keys * dim);
  float* scores = scratch.take(most_keys * kLanes);
  float* queries = scratch.take(tiles * tile_size);
  float* sums = scratch.take(tiles * tile_size);
  float* tops = scratch.take(tiles * kLanes);
  float* masses = scratch.take(tiles * kLanes);
  float* rest = scratch.take(tile_size);
  std::fill(sums, sums + tiles * tile_size, 0.0f);
  std::fill(tops, tops + tiles * kLanes, kNone);
  std::fill(masses, masses + tiles * kLanes, 0.0f);
  for (int64_t tile = 0; tile < tiles; ++tile)
    pack_queries(block, head, tile * kLanes, rows - tile * kLanes, rest, queries + tile * tile_size);
  if (uses_halves)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      float* line = queries + tile * tile_size;
      for (int64_t i = 0; i < dim; i += 2)
        pair_rows(line + i * kLanes, line + (i + 1) * kLanes, kLanes, reinterpret_cast<int32_t*>(line) + i / 2 * kLanes);
    }

  for (int64_t begin = first_key; begin < end_key; begin += kKeys) {
    const int64_t count = std::min(kKeys, end_key - begin);
    // Rows of the tokens are far apart, at distances that share few places of the first cache: they are copied together.
    for (int64_t j = 0; j < count; ++j) {
      const float* key = keys + (begin + j) * width;
      if (uses_halves) {
        if (!is_plain) {
          prepare(key, data_.key_norm, begin + j, rest);
          key = rest;
        }
        pair_neighbours(key, dim, reinterpret_cast<int32_t*>(near_keys) + j * dim / 2);
        const float* value = values + (begin + j) * width;
        if (j % 2 == 0)
          pair_rows(value, j + 1 < count ? value + width : nullptr, dim,
                    reinterpret_cast<int32_t*>(near_values) + j / 2 * dim);
        continue;
      }
      if (is_plain)
        copy(key, dim, near_keys + j * dim);
      else
        prepare(key, data_.key_norm, begin + j, near_keys + j * dim);
      copy(values + (begin + j) * width, dim, near_values + j * dim);
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (uses_halves)
        (dim == 32 ? score_all_pairs<32> : dim == 64 ? score_all_pairs<64> : score_all_pairs<0>)(
            reinterpret_cast<int32_t*>(queries + tile * tile_size), reinterpret_cast<int32_t*>(near_keys), count, dim,
            scores);
      else
        (dim == 32 ? score_keys<32> : dim == 64 ? score_keys<64> : score_keys<0>)(queries + tile * tile_size, near_keys,
                                                                                  count, dim, scores);
      if (data_.bias != nullptr) add_bias(block, head, tile * kLanes, begin, count, scores);
      const int64_t low_position = block.first + tile * kLanes / group;
      const int64_t high_position = block.first + std::min(rows - 1, tile * kLanes + kLanes - 1) / group;
      const bool hides_later = (shape_.is_causal && begin + count - 1 > low_position) ||
                               (shape_.window >= 0 && begin + count - 1 > low_position + shape_.window);
      const bool hides_earlier = shape_.window >= 0 && begin < high_position - shape_.window;
      if (hides_later || hides_earlier) {
        VecInt from, to;
        for (int r = 0; r < kLanes; ++r) {
          const int64_t position = block.first + std::min(rows - 1, tile * kLanes + r) / group;
          from[r] = static_cast<int32_t>(shape_.window >= 0 ? std::max<int64_t>(0, position - shape_.window) : 0);
          int64_t end = shape_.is_causal ? position : block.length - 1;
          if (shape_.window >= 0) end = std::min(end, position + shape_.window);
          to[r] = static_cast<int32_t>(end);
        }
        for (int64_t j = 0; j < count; ++j) {
          const auto key = static_cast<int32_t>(begin + j);
          const VecInt is_hidden = (key < from) | (key > to);
          store(scores + j * kLanes, is_hidden ? splat(kHidden) : load(scores + j * kLanes));
        }
      }
      // Softmax over several blocks with a running top (Milakov and Gimelshein, arXiv 1805.02867).
      const Vec top = load(tops + tile * kLanes);
      Vec new_top = top;
      for (int64_t j = 0; j < count; ++j) new_top = maximum(new_top, load(scores + j * kLanes));
      Vec added;
      if (uses_halves)
        added = to_weight_pairs(scores, count, new_top);
      else
        added = to_weights(scores, count, new_top);
      float* tile_sums = sums + tile * tile_size;
      const int64_t tile_rows = std::min<int64_t>(kLanes, rows - tile * kLanes);
      if (begin > first_key) {
        const Vec shrink = power_of_two(top - new_top);
        for (int64_t r = 0; r < tile_rows; ++r)
          for (int64_t i = 0; i < dim; ++i) tile_sums[r * dim + i] *= shrink[r];
        added += load(masses + tile * kLanes) * shrink;
      }
      store(tops + tile * kLanes, new_top);
      store(masses + tile * kLanes, added);
      if (uses_halves)
        mix_all_pairs(reinterpret_cast<int32_t*>(scores), tile_rows, reinterpret_cast<int32_t*>(near_values),
                      (count + 1) / 2, dim, tile_sums);
      else
        mix(scores, tile_rows, near_values, count, dim, tile_sums);
    }
  }
  const int64_t out_width = shape_.num_heads * dim;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = data_.out + (block.start + block.first + r / group) * out_width + (head * group + r % group) * dim;
    const float inverse = 1.0f / masses[r];
    const float* from = sums + (r / kLanes) * tile_size + r % kLanes * dim;
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) store(to + i, load(from + i) * inverse);
    for (; i < dim; ++i) to[i] = from[i] * inverse;
  }
}

}  // namespace vorta
