// Causal attention with grouped heads over KV slots, rotary positions included: one piece of work for each row and KV
// head (and each block of queries), so that the query heads of a group read their keys and values once.
#pragma once

#include <cstdint>

namespace vorta {

struct AttentionShape {
  int64_t batch;         // rows; more than one only with one step, or with nothing in the slots
  int64_t steps;         // new tokens of a row
  int64_t num_heads;     // query heads, a multiple of num_kv_heads
  int64_t num_kv_heads;
  int64_t head_dim;      // even
  int64_t past_capacity;     // positions of a slot that is read
  int64_t present_capacity;  // positions of a slot that is written
  int64_t window;        // positions that a query sees, itself included; 0 for all
  float scale;
};

struct AttentionData {
  const float* qkv;          // [batch, steps, (num_heads + 2 num_kv_heads) head_dim]
  const float* key;          // [batch, steps, num_kv_heads head_dim] when qkv holds the queries alone, else null
  const float* value;        // likewise
  const float* past_key;     // [batch, num_kv_heads, past_capacity, head_dim]
  const float* past_value;
  const int32_t* last;       // [batch] the row's valid positions after this step, less one
  const float* cosines;      // [positions, head_dim / 2]
  const float* sines;
  float* present_key;        // [batch, num_kv_heads, present_capacity, head_dim]; may be the past's memory
  float* present_value;
  float* out;                // [batch, steps, num_heads head_dim]
};

class Attention {
 public:
  Attention(const AttentionShape& shape, const AttentionData& data);

  // Numbers of `memory` that attention over several steps needs; 0 where the processor multiplies floats alone.
  int64_t memory_size() const;
  void use(uint32_t* memory) { memory_ = memory; }

  // First, for every index below num_appends(): writes new keys and values into the slots, and keys and values of
  // several steps into `memory` as they will be multiplied.
  int64_t num_appends() const { return shape_.batch * shape_.num_kv_heads * num_key_blocks_; }
  void append(int64_t index) const;

  // Then, for every index below num_blocks(): a block of queries of one KV head.
  int64_t num_blocks() const;
  void attend(int64_t index) const;

 private:
  int64_t past_of(int64_t row) const;
  int64_t queries_per_block() const;
  bool has_halves() const;
  const uint32_t* packed_keys(int64_t slot) const;
  const uint32_t* packed_values(int64_t slot) const;

  AttentionShape shape_;
  AttentionData data_;
  int64_t num_key_blocks_ = 1;  // of the longest row; one piece for all keys with one step
  uint32_t* memory_ = nullptr;
};

}  // namespace vorta
