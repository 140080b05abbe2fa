#include "packed_attention.h"

#include <algorithm>

#include "attention_tiles.h"

namespace vorta {
namespace {

constexpr int64_t kQueryRows = 48;  // (query, head) pairs of a block of queries, about

inline float* scratch(std::vector<float>& memory, int64_t size) {
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// packed[i, k] = scale keys[k][i] for 16 keys of `dim` numbers.
void transpose_keys(const float* const keys[kLanes], int64_t dim, float scale, float* packed) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vec rows[kLanes];
    for (int k = 0; k < kLanes; ++k) rows[k] = load(keys[k] + i);
    transpose(rows);
    for (int k = 0; k < kLanes; ++k) store(packed + (i + k) * kLanes, rows[k] * scale);
  }
  for (; i < dim; ++i)
    for (int k = 0; k < kLanes; ++k) packed[i * kLanes + k] = keys[k][i] * scale;
}

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
  return std::max<int64_t>(1, kQueryRows / (shape_.num_heads / shape_.num_kv_heads));
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

void PackedAttention::attend(int64_t piece) const {
  const Block block = blocks_[piece / shape_.num_kv_heads];
  const int64_t head = piece % shape_.num_kv_heads;
  const int64_t dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t num_queries = std::min(queries_per_block(), block.length - block.first);
  const int64_t rows = num_queries * group;
  const int64_t width = (shape_.num_heads + 2 * shape_.num_kv_heads) * dim;
  const float* text = data_.qkv + block.start * width;
  const float* keys = text + (shape_.num_heads + head) * dim;
  const float* values = text + (shape_.num_heads + shape_.num_kv_heads + head) * dim;
  const bool is_plain = data_.key_norm == nullptr && data_.query_norm == nullptr && data_.cosines == nullptr;

  static thread_local std::vector<float> memory;
  float* sums = scratch(memory, rows * dim * 2 + rows * kKeyBlock + 2 * dim * kLanes + 2 * rows);
  float* scores = sums + rows * dim;
  float* packed = scores + rows * kKeyBlock;
  float* prepared = packed + dim * kLanes;
  float* tops = prepared + dim * kLanes;
  float* masses = tops + rows;
  // Queries are read where they lie, unless something is to be done to them or several heads share the keys.
  const float* queries = text + block.first * width + head * dim;
  int64_t stride = width;
  if (!is_plain || group > 1) {
    float* own = masses + rows;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = block.first + r / group;
      prepare(text + position * width + (head * group + r % group) * dim, data_.query_norm, position, own + r * dim);
    }
    queries = own;
    stride = dim;
  }
  std::fill(sums, sums + rows * dim, 0.0f);
  std::fill(tops, tops + rows, kNever);
  std::fill(masses, masses + rows, 0.0f);

  // What the block's queries see together.
  const int64_t last = block.first + num_queries - 1;
  const int64_t first_key = shape_.window >= 0 ? std::max<int64_t>(0, block.first - shape_.window) : 0;
  int64_t end_key = shape_.is_causal ? last + 1 : block.length;
  if (shape_.window >= 0) end_key = std::min(end_key, last + shape_.window + 1);
  for (int64_t begin = first_key; begin < end_key; begin += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, end_key - begin), padded = rounded_up(count, kLanes);
    for (int64_t j = 0; j < count; j += kLanes) {
      const float* sixteen[kLanes];
      for (int64_t k = 0; k < kLanes; ++k) {
        const int64_t position = begin + std::min(j + k, count - 1);
        sixteen[k] = keys + position * width;
        if (is_plain) continue;
        prepare(sixteen[k], data_.key_norm, position, prepared + k * dim);
        sixteen[k] = prepared + k * dim;
      }
      transpose_keys(sixteen, dim, shape_.scale, packed);
      score_rows(queries, stride, rows, packed, dim, scores + j);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = block.first + r / group;
      float* line = scores + r * kKeyBlock;
      if (data_.bias != nullptr) {
        const float* bias = data_.bias + (head * group + r % group) * shape_.bias_stride + shape_.reach - 1 - position + begin;
        for (int64_t j = 0; j < padded; j += kLanes) store(line + j, load(line + j) + load(bias + j));
      }
      // Keys that this query does not see, and the padding.
      int64_t seen_begin = 0, seen_end = count;
      if (shape_.is_causal) seen_end = std::min(seen_end, position + 1 - begin);
      if (shape_.window >= 0) {
        seen_begin = std::max<int64_t>(0, position - shape_.window - begin);
        seen_end = std::min(seen_end, position + shape_.window + 1 - begin);
      }
      if (seen_end <= seen_begin) {
        std::fill(line, line + padded, 0.0f);
        continue;
      }
      std::fill(line, line + seen_begin, kNever);
      std::fill(line + seen_end, line + padded, kNever);
      weigh(line, padded, tops[r], masses[r], sums + r * dim, dim, begin > first_key);
    }
    mix(scores, rows, values + begin * width, width, count, dim, sums);
  }
  const int64_t out_width = shape_.num_heads * dim;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = data_.out + (block.start + block.first + r / group) * out_width + (head * group + r % group) * dim;
    const float inverse = 1.0f / masses[r];
    for (int64_t i = 0; i < dim; ++i) to[i] = sums[r * dim + i] * inverse;
  }
}

}  // namespace vorta
