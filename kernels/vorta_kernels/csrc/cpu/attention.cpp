#include "attention.h"

#include <algorithm>
#include <vector>

#include "attention_halves.h"
#include "attention_tiles.h"

namespace vorta {
namespace {

constexpr int64_t kQueryRows = 64;     // (query, head) pairs of a block of queries, about

// Memory from a line of the cache on: tiles are read in lines.
template <typename Element>
Element* scratch(std::vector<Vec>& memory, int64_t size) {
  const size_t needed = (size + kLanes - 1) / kLanes;
  if (memory.size() < needed) memory.resize(needed);
  return reinterpret_cast<Element*>(memory.data());
}

// to = x rotated and scaled; pairs are (i, i + dim / 2).
void rotate(const float* x, const float* cosines, const float* sines, float scale, int64_t dim, float* to) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    to[i] = (x[i] * cosines[i] - x[i + half] * sines[i]) * scale;
    to[i + half] = (x[i + half] * cosines[i] + x[i] * sines[i]) * scale;
  }
}

// scores[r, j] = queries[r] . keys[j] for few rows and keys as they lie, [count, dim], dim = 16 kWidth: four keys stay in
// registers while all rows meet them.
template <int kWidth>
void score_few_of(const float* queries, int64_t rows, const float* keys, int64_t count, float* scores) {
  constexpr int64_t dim = kWidth * kLanes;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    Vec part[4][kWidth];
    for (int k = 0; k < 4; ++k)
      for (int w = 0; w < kWidth; ++w) part[k][w] = load(keys + (j + k) * dim + w * kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      Vec dots[4];
      for (int w = 0; w < kWidth; ++w) {
        const Vec query = load(queries + r * dim + w * kLanes);
        for (int k = 0; k < 4; ++k) dots[k] = w == 0 ? query * part[k][w] : dots[k] + query * part[k][w];
      }
      const Vec all = sums_of(dots[0], dots[1], dots[2], dots[3]);
      float* to = scores + r * kKeyBlock + j;
      to[0] = all[0];
      to[1] = all[4];
      to[2] = all[8];
      to[3] = all[12];
    }
  }
  for (; j < count; ++j)
    for (int64_t r = 0; r < rows; ++r) {
      Vec dot = Vec{};
      for (int w = 0; w < kWidth; ++w) dot += load(queries + r * dim + w * kLanes) * load(keys + j * dim + w * kLanes);
      scores[r * kKeyBlock + j] = sums_of(dot, dot, dot, dot)[0];
    }
}

// The same for any dim, as plain sums.
void score_any(const float* queries, int64_t rows, const float* keys, int64_t count, int64_t dim, float* scores) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < count; ++j) {
      float total = 0.0f;
      for (int64_t i = 0; i < dim; ++i) total += queries[r * dim + i] * keys[j * dim + i];
      scores[r * kKeyBlock + j] = total;
    }
}

// The same for many queries: 16 keys at a time, transposed to [dim, 16].
void score_many(const float* queries, int64_t rows, const float* keys, int64_t count, int64_t dim, float* packed,
                float* scores) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t valid = std::min<int64_t>(kLanes, count - j);
    for (int64_t k = 0; k < kLanes; ++k) {
      const float* key = keys + (j + std::min(k, valid - 1)) * dim;
      for (int64_t i = 0; i < dim; ++i) packed[i * kLanes + k] = key[i];
    }
    score_rows(queries, dim, rows, packed, dim, scores + j);
  }
}

}  // namespace

int64_t Attention::past_of(int64_t row) const {
  // Several rows of several steps are padded prompts on empty slots.
  if (shape_.batch > 1 && shape_.steps > 1) return 0;
  return std::max<int64_t>(0, data_.last[row] + 1 - shape_.steps);
}

int64_t Attention::queries_per_block() const {
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  return std::max<int64_t>(1, std::min(shape_.steps, kQueryRows / group));
}

int64_t Attention::num_blocks() const {
  const int64_t per_block = queries_per_block();
  return shape_.batch * shape_.num_kv_heads * ((shape_.steps + per_block - 1) / per_block);
}

Attention::Attention(const AttentionShape& shape, const AttentionData& data) : shape_(shape), data_(data) {
  if (shape_.steps == 1) return;
  for (int64_t row = 0; row < shape_.batch; ++row)
    num_key_blocks_ = std::max(num_key_blocks_, (past_of(row) + shape_.steps + kKeyBlock - 1) / kKeyBlock);
}

bool Attention::has_halves() const {
#if VORTA_HALVES
  return shape_.steps > 1 && shape_.head_dim % kLanes == 0 && shape_.head_dim <= kHalvesMaxDim;
#else
  return false;
#endif
}

int64_t Attention::memory_size() const {
  return has_halves() ? shape_.batch * shape_.num_kv_heads * num_key_blocks_ * kKeyBlock * shape_.head_dim : 0;
}

const uint32_t* Attention::packed_keys(int64_t slot) const {
  return memory_ + slot * num_key_blocks_ * kKeyBlock * shape_.head_dim;
}

const uint32_t* Attention::packed_values(int64_t slot) const {
  return packed_keys(slot) + num_key_blocks_ * kKeyBlock * shape_.head_dim / 2;
}

void Attention::append(int64_t index) const {
  const int64_t slot = index / num_key_blocks_, row = slot / shape_.num_kv_heads, head = slot % shape_.num_kv_heads;
  const int64_t dim = shape_.head_dim, past = past_of(row);
  // The positions of this piece: those of a block of keys, or all.
  const int64_t begin = index % num_key_blocks_ * kKeyBlock;
  const int64_t end = num_key_blocks_ == 1 ? past + shape_.steps : std::min(begin + kKeyBlock, past + shape_.steps);
  if (begin >= end) return;
  const int64_t packed_width = (shape_.num_heads + 2 * shape_.num_kv_heads) * dim;
  const int64_t width = data_.key != nullptr ? shape_.num_kv_heads * dim : packed_width;
  const int64_t key_start = data_.key != nullptr ? head * dim : (shape_.num_heads + head) * dim;
  const int64_t value_start =
      data_.value != nullptr ? head * dim : (shape_.num_heads + shape_.num_kv_heads + head) * dim;
  const float* keys = data_.key != nullptr ? data_.key : data_.qkv;
  const float* values = data_.value != nullptr ? data_.value : data_.qkv;
  float* present_key = data_.present_key + slot * shape_.present_capacity * dim;
  float* present_value = data_.present_value + slot * shape_.present_capacity * dim;
  const float* past_key = data_.past_key + slot * shape_.past_capacity * dim;
  const float* past_value = data_.past_value + slot * shape_.past_capacity * dim;
  if (const int64_t count = (std::min(end, past) - begin) * dim; count > 0) {
    const int64_t start = begin * dim;
    if (present_key != past_key) std::memcpy(present_key + start, past_key + start, count * sizeof(float));
    if (present_value != past_value) std::memcpy(present_value + start, past_value + start, count * sizeof(float));
  }
  for (int64_t position = std::max(begin, past); position < end; ++position) {
    const int64_t token = row * shape_.steps + position - past;
    rotate(keys + token * width + key_start, data_.cosines + position * (dim / 2), data_.sines + position * (dim / 2),
           1.0f, dim, present_key + position * dim);
    std::memcpy(present_value + position * dim, values + token * width + value_start, dim * sizeof(float));
  }
#if VORTA_HALVES
  if (has_halves()) {
    const int64_t to = begin * dim / 2;
    pack_keys(present_key + begin * dim, end - begin, dim, const_cast<uint32_t*>(packed_keys(slot)) + to);
    pack_values(present_value + begin * dim, end - begin, dim, const_cast<uint32_t*>(packed_values(slot)) + to);
  }
#endif
}

void Attention::attend(int64_t index) const {
  const int64_t dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
  const int64_t per_block = queries_per_block();
  const int64_t blocks = (shape_.steps + per_block - 1) / per_block;
  // Later blocks of queries see more keys: they go first, so that no long one is left for the end.
  const int64_t block = blocks - 1 - index / (shape_.batch * shape_.num_kv_heads);
  const int64_t slot = index % (shape_.batch * shape_.num_kv_heads);
  const int64_t row = slot / shape_.num_kv_heads, head = slot % shape_.num_kv_heads;
  const int64_t first_step = block * per_block;
  const int64_t num_queries = std::min(per_block, shape_.steps - first_step);
  const int64_t rows = num_queries * group;
  const int64_t past = past_of(row);
  const int64_t width = (shape_.num_heads + (data_.key != nullptr ? 0 : 2 * shape_.num_kv_heads)) * dim;
  const float* keys = data_.present_key + slot * shape_.present_capacity * dim;
  const float* values = data_.present_value + slot * shape_.present_capacity * dim;

  static thread_local std::vector<Vec> memory;
  const int64_t all_rows = rounded_up(rows, 16);
  float* queries = scratch<float>(memory, all_rows * dim * 2 + all_rows * kKeyBlock + dim * kLanes + 2 * rows);
  float* sums = queries + all_rows * dim;
  float* scores = sums + all_rows * dim;
  float* packed = scores + all_rows * kKeyBlock;
  float* tops = packed + dim * kLanes;
  float* masses = tops + rows;
  const bool is_halved = has_halves();
  const float scale = is_halved ? shape_.scale * 1.44269504088896341f : shape_.scale;

  for (int64_t query = 0; query < num_queries; ++query) {
    const int64_t token = row * shape_.steps + first_step + query, position = past + first_step + query;
    for (int64_t member = 0; member < group; ++member)
      rotate(data_.qkv + token * width + (head * group + member) * dim, data_.cosines + position * (dim / 2),
             data_.sines + position * (dim / 2), scale, dim, queries + (query * group + member) * dim);
  }
  std::fill(sums, sums + rows * dim, 0.0f);
  std::fill(tops, tops + rows, kNever);
  std::fill(masses, masses + rows, 0.0f);

#if VORTA_HALVES
  static thread_local std::vector<Vec> halves_memory;
  uint32_t* query_halves =
      scratch<uint32_t>(halves_memory, is_halved ? all_rows * (kQueryPairs + kWeightPairs) : 0);
  uint32_t* weights = query_halves + all_rows * kQueryPairs;
  [[maybe_unused]] const bool is_tiled = is_halved && dim % 32 == 0 && has_tiles();
  for (int64_t r = 0; is_halved && r < rows; ++r)
    for (int64_t i = 0; i < dim; i += kLanes)
      store_halves(query_halves + r * kQueryPairs + i / 2, _mm512_loadu_ps(queries + r * dim + i));
#endif
  const int64_t last_position = past + first_step + num_queries - 1;
  int64_t begin = 0;
  if (shape_.window > 0) begin = std::max<int64_t>(0, past + first_step - shape_.window + 1);
  // Blocks of keys begin where they do whatever the queries are, so that a prompt's results do not depend on its cut.
  if (shape_.steps > 1) begin -= begin % kKeyBlock;
  for (; begin <= last_position; begin += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, last_position + 1 - begin);
    const float* block_keys = keys + begin * dim;
    // By the number of steps alone, so that a prompt's results do not depend on how it is cut.
#if VORTA_HALVES
#if VORTA_AMX
    if (is_tiled) {
      const Tiles tiles;
      score_tiles(query_halves, rows, packed_keys(slot) + begin * dim / 2, count, dim, scores);
    } else
#endif
    if (is_halved)
      score_halves(query_halves, rows, packed_keys(slot) + begin * dim / 2, count, dim, scores);
    else
#endif
    if (shape_.steps > 1)
      score_many(queries, rows, block_keys, count, dim, packed, scores);
    else if (dim == 2 * kLanes)
      score_few_of<2>(queries, rows, block_keys, count, scores);
    else if (dim == 4 * kLanes)
      score_few_of<4>(queries, rows, block_keys, count, scores);
    else if (dim == 6 * kLanes)
      score_few_of<6>(queries, rows, block_keys, count, scores);
    else if (dim == 8 * kLanes)
      score_few_of<8>(queries, rows, block_keys, count, scores);
    else
      score_any(queries, rows, block_keys, count, dim, scores);
    const int64_t padded = rounded_up(count, kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = past + first_step + r / group;
      float* line = scores + r * kKeyBlock;
      // Keys that this query does not see, and the padding.
      const int64_t seen_end = std::min(count, position + 1 - begin);
      const int64_t seen_begin = shape_.window > 0 ? std::max<int64_t>(0, position - shape_.window + 1 - begin) : 0;
      for (int64_t j = 0; j < std::min(seen_begin, padded); ++j) line[j] = kNever;
      for (int64_t j = std::max<int64_t>(0, seen_end); j < padded; ++j) line[j] = kNever;
#if VORTA_HALVES
      if (is_halved) {
        uint32_t* to = weights + r * kWeightPairs;
        std::fill(to + padded / 2, to + rounded_up(count, kTileKeys) / 2, 0);
        if (seen_end <= seen_begin)
          std::fill(to, to + padded / 2, 0);
        else
          weigh_halves(line, padded, tops[r], masses[r], sums + r * dim, dim, begin > 0, to);
        continue;
      }
#endif
      if (seen_end <= seen_begin) {
        std::fill(line, line + padded, 0.0f);
        continue;
      }
      weigh(line, padded, tops[r], masses[r], sums + r * dim, dim, begin > 0);
    }
#if VORTA_AMX && VORTA_HALVES
    if (is_tiled) {
      const Tiles tiles;
      mix_tiles(weights, rows, packed_values(slot) + begin * dim / 2, count, dim, sums);
      continue;
    }
#endif
#if VORTA_HALVES
    if (is_halved) {
      mix_halves(weights, rows, packed_values(slot) + begin * dim / 2, (count + 1) / 2, dim, sums);
      continue;
    }
#endif
    mix(scores, rows, values + begin * dim, dim, count, dim, sums);
  }
  const int64_t out_width = shape_.num_heads * dim;
  for (int64_t query = 0; query < num_queries; ++query) {
    float* to = data_.out + (row * shape_.steps + first_step + query) * out_width + head * group * dim;
    for (int64_t member = 0; member < group; ++member) {
      const int64_t r = query * group + member;
      const float inverse = 1.0f / masses[r];
      for (int64_t i = 0; i < dim; ++i) to[member * dim + i] = sums[r * dim + i] * inverse;
    }
  }
}

}  // namespace vorta
