// Attention of texts that lie behind each other without padding: every token sees its own text, both sides or what came
// before, all of it or a window. One piece of work for each text, KV head and block of queries.
#pragma once

#include <cstdint>
#include <vector>

namespace vorta {

struct PackedAttentionShape {
  int64_t num_heads;  // query heads, a multiple of num_kv_heads
  int64_t num_kv_heads;
  int64_t head_dim;   // even
  int64_t window;     // the largest distance at which a token sees another; -1 for any
  bool is_causal;     // a token sees none behind it
  bool uses_halves;   // scores and sums are of bfloat16 numbers, added as floats, where the processor has such products
  float scale;
  float epsilon;      // of the norms
  int64_t reach;      // distances that `bias` knows: below it
  int64_t bias_stride;
};

struct PackedAttentionData {
  const float* qkv;         // [tokens, (num_heads + 2 num_kv_heads) head_dim]
  const int32_t* offsets;   // [texts + 1], from 0 to tokens
  int64_t num_texts;
  const float* cosines;     // [positions, head_dim / 2], or null for no rotation
  const float* sines;
  const float* query_norm;  // [head_dim] weights of an RMS norm of every head, or null for none
  const float* key_norm;
  const float* bias;        // [num_heads, bias_stride], added to the score of a key j - i behind its query at reach - 1 +
                            // j - i, with 15 numbers behind the last that is used; or null
  float* out;               // [tokens, num_heads head_dim]
};

class PackedAttention {
 public:
  PackedAttention(const PackedAttentionShape& shape, const PackedAttentionData& data);

  int64_t num_pieces() const { return static_cast<int64_t>(blocks_.size()) * shape_.num_kv_heads; }
  void attend(int64_t piece) const;

  // Multiplications of all pieces, about.
  int64_t work() const { return work_; }

 private:
  struct Block {
    int64_t start, length;  // the text
    int64_t first;          // the block's first query in it
  };

  // to = the head's vector at this position, normed and rotated as the data wants.
  void prepare(const float* x, const float* norm, int64_t position, float* to) const;
  // The queries of a tile of 16 rows, scaled, as [head_dim, 16]; `rest` is memory for 16 of them.
  void pack_queries(const Block& block, int64_t head, int64_t first_row, int64_t rows, float* rest, float* to) const;
  // What is added to the scores [count, 16] of a tile's rows for keys `begin` and on.
  void add_bias(const Block& block, int64_t head, int64_t first_row, int64_t begin, int64_t count, float* scores) const;
  int64_t queries_per_block() const;

  PackedAttentionShape shape_;
  PackedAttentionData data_;
  std::vector<Block> blocks_;
  int64_t work_ = 0;
};

}  // namespace vorta
