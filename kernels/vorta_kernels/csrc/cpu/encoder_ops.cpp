// Operators of text encoders in the domain "vorta"; encoder_ops.h says what "packed" means.
//
//   EmbedTokens           ids int32 [T], offsets int32 [B + 1], words [V, H]?, codes uint8 [V, P]?, scales [V, P / 32]?,
//                         positions [L, H]?, types int32 [T]?, type_rows [., H]?  -> y [T, H]
//   Norm                  x [T, H], weight [H], bias [H]?                   -> normed [T, H]?, codes?, factor?
//   MatMulBlocksNorm      codes, factor, weights, scales, bias?, residual [T, H], weight [H], bias [H]?
//                                                                           -> normed?, total?, codes?, factor?
//   MatMulBlocksActivate  codes, factor, weights, scales, bias?             -> codes, factor
//   MatMulTiles           x [T, K], weights [tiles, K, 16], bias?           -> y [T, N]
//   MatMulTilesNorm       x, weights, bias?, residual, weight, bias?        -> normed, total?
//   MatMulTilesActivate   x, weights, bias?                                 -> y [T, N or N / 2]
//   PackedAttention       qkv, offsets, cosines?, sines?, query_norm?, key_norm?, bias?  -> y [T, heads * head_dim]
//   MeanOfTexts           x [T, H], offsets                                  -> y [B, H]
//
// Products are those of ops.cpp and product.h; `total` is residual + product, `normed` its norm. Words are floats, or
// 8-bit codes around 128 in blocks of 32 that share a scale. Codes are those of ops.cpp; `factor` is [T, blocks] here, one
// for each block of the codes: encoders have few channels with numbers many times as large as the others, which would
// cost all channels of a row their precision (all-MiniLM-L6-v2: the ten nearest neighbours were 92 % the same as in fp32,
// with a factor for each of three blocks 96 %).
#include "encoder_ops.h"

#include <algorithm>
#include <cstring>

#include "encoder_rows.h"
#include "op.h"
#include "packed_attention.h"
#include "product.h"

namespace vorta {
namespace {

constexpr int64_t kWordBlock = 32;

// Whether offsets go up from 0 to the number of tokens.
bool are_offsets(const Tensor& offsets, int64_t num_tokens) {
  if (offsets.shape.size() != 1 || offsets.shape[0] < 1) return false;
  const auto* at = static_cast<const int32_t*>(offsets.data);
  for (int64_t text = 0; text + 1 < offsets.shape[0]; ++text)
    if (at[text] > at[text + 1]) return false;
  return at[0] == 0 && at[offsets.shape[0] - 1] == num_tokens;
}

struct EmbedTokens {
  static constexpr const char* kName = "EmbedTokens";
  static constexpr int kInputs[] = {ort::kInt32, ort::kInt32, ort::kFloat, ort::kUint8,
                                    ort::kFloat, ort::kFloat, ort::kInt32, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit EmbedTokens(const Attributes& attributes)
      : size_(attributes.integer("hidden_size")), first_position_(attributes.integer("first_position")) {}

  ort::Status* compute(const Context& context) const {
    const Tensor ids = context.input(0), offsets = context.input(1), words = context.input(2),
                 codes = context.input(3), scales = context.input(4), positions = context.input(5),
                 types = context.input(6), type_rows = context.input(7);
    const int64_t tokens = ids.shape[0];
    const int64_t num_words = words ? words.shape[0] : codes ? codes.shape[0] : 0;
    const int64_t num_types = type_rows ? type_rows.shape[0] : 0;
    if (!are_offsets(offsets, tokens)) return context.refuse("EmbedTokens: offsets do not fit the tokens");
    const auto* at = static_cast<const int32_t*>(offsets.data);
    const auto* id = static_cast<const int32_t*>(ids.data);
    const auto* type = static_cast<const int32_t*>(types.data);
    if (types && types.shape[0] != tokens) return context.refuse("EmbedTokens: types do not fit the tokens");
    for (int64_t token = 0; token < tokens; ++token)
      if (id[token] < 0 || id[token] >= num_words || (types && (type[token] < 0 || type[token] >= num_types)))
        return context.refuse("EmbedTokens: a token or its type has no row");
    for (int64_t text = 0; positions && text + 1 < offsets.shape[0]; ++text)
      if (first_position_ + at[text + 1] - at[text] > positions.shape[0])
        return context.refuse("EmbedTokens: a text is longer than the positions");
    float* out = static_cast<float*>(context.output(0, {tokens, size_}));
    const int32_t* end = at + offsets.shape[0];
    context.for_each(tokens, tokens * size_, [&](int64_t token) {
      float* to = out + token * size_;
      if (words)
        std::memcpy(to, words.floats() + id[token] * size_, size_ * sizeof(float));
      else
        restore(static_cast<const uint8_t*>(codes.data) + id[token] * codes.columns(),
                scales.floats() + id[token] * scales.columns(), to);
      if (positions) {
        const int64_t position = token - *(std::upper_bound(at, end, static_cast<int32_t>(token)) - 1);
        add(positions.floats() + (first_position_ + position) * size_, to);
      }
      if (type_rows) add(type_rows.floats() + (types ? type[token] : 0) * size_, to);
    });
    return nullptr;
  }

  void restore(const uint8_t* codes, const float* scales, float* to) const {
    for (int64_t i = 0; i < size_; ++i) to[i] = (static_cast<float>(codes[i]) - 128.0f) * scales[i / kWordBlock];
  }

  void add(const float* from, float* to) const {
    for (int64_t i = 0; i < size_; ++i) to[i] += from[i];
  }

  int64_t size_, first_position_;
};

// Where a row's codes and their factors go, one factor for each block.
inline RowCodes codes_of(const CodesAndFactors& out, int64_t row) {
  return {out.padded, out.per_row, out.codes + row * out.padded, out.factors + row * out.per_row};
}

// Writes them where the graph has a use for them.
inline void write_codes(const CodesAndFactors& out, int64_t row, const float* values, int64_t size) {
  if (out.codes != nullptr) quantise_blocks(values, size, codes_of(out, row));
}

struct Norm {
  static constexpr const char* kName = "Norm";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat, ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit Norm(const Attributes& attributes)
      : multiple_(attributes.integer("multiple")),
        epsilon_(attributes.number("epsilon")),
        is_rms_(attributes.integer("rms") != 0) {}

  ort::Status* compute(const Context& context) const {
    const Tensor x = context.input(0), weight = context.input(1), bias = context.input(2);
    const int64_t rows = x.rows(), size = x.columns();
    if (weight.columns() != size || (bias && bias.columns() != size))
      return context.refuse("Norm: inputs differ in shape");
    auto* normed = static_cast<float*>(context.output(0, x.shape));
    const CodesAndFactors out(context, x.shape, multiple_, 1, true);
    context.for_each(rows, rows * size, [&](int64_t row) {
      float* to = normed != nullptr ? normed + row * size : thread_scratch(size);
      norm_row(is_rms_, x.floats() + row * size, nullptr, weight.floats(), bias.floats(), epsilon_, size, to, to);
      write_codes(out, row, to, size);
    });
    return nullptr;
  }

  int64_t multiple_;
  float epsilon_;
  bool is_rms_;
};

// What is done to a product's rows: activation(row), or of a row of twice the size its first half's activation times the
// second half.
struct ActivationOf {
  explicit ActivationOf(const Attributes& attributes)
      : activation(static_cast<Activation>(attributes.integer("activation"))),
        is_gated(attributes.integer("gated") != 0) {}

  int64_t size(int64_t width) const { return is_gated ? width / 2 : width; }

  void apply(const float* row, int64_t width, float* out) const {
    activate_row(activation, row, is_gated ? row + size(width) : nullptr, size(width), out);
  }

  void quantise(float* row, int64_t width, const RowCodes& to) const {
    activate_and_quantise_row(activation, row, is_gated ? row + size(width) : nullptr, size(width), to);
  }

  Activation activation;
  bool is_gated;
};

struct MatMulBlocksActivate {
  static constexpr const char* kName = "MatMulBlocksActivate";
  static constexpr int kInputs[] = {ort::kInt8, ort::kFloat, ort::kUint8, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 4;

  explicit MatMulBlocksActivate(const Attributes& attributes)
      : activation_(attributes),
        block_(attributes.integer("block")),
        num_outputs_(attributes.integer("N")),
        multiple_(attributes.integer("multiple")) {}

  ort::Status* compute(const Context& context) const {
    BlockProduct product(context, num_outputs_);
    if (!product.fits(block_, 8)) return context.refuse("MatMulBlocksActivate: inputs do not fit each other");
    const int64_t size = activation_.size(num_outputs_);
    std::vector<int64_t> shape = product.x.shape;
    shape.back() = size;
    const CodesAndFactors out(context, shape, multiple_, 0, true);
    compute_product(context, product, nullptr, [&](int64_t row, float* values) {
      activation_.quantise(values, num_outputs_, codes_of(out, row));
    });
    return nullptr;
  }

  ActivationOf activation_;
  int64_t block_, num_outputs_, multiple_;
};

struct MatMulTiles {
  static constexpr const char* kName = "MatMulTiles";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit MatMulTiles(const Attributes& attributes) : num_outputs_(attributes.integer("N")) {}

  ort::Status* compute(const Context& context) const {
    const TileProduct product(context, num_outputs_);
    if (!product.fits()) return context.refuse("MatMulTiles: inputs do not fit each other");
    std::vector<int64_t> shape = product.x.shape;
    shape.back() = num_outputs_;
    compute_product(context, product, static_cast<float*>(context.output(0, shape)), [](int64_t, float*) {});
    return nullptr;
  }

  int64_t num_outputs_;
};

struct MatMulTilesActivate {
  static constexpr const char* kName = "MatMulTilesActivate";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit MatMulTilesActivate(const Attributes& attributes)
      : activation_(attributes), num_outputs_(attributes.integer("N")) {}

  ort::Status* compute(const Context& context) const {
    const TileProduct product(context, num_outputs_);
    if (!product.fits()) return context.refuse("MatMulTilesActivate: inputs do not fit each other");
    const int64_t size = activation_.size(num_outputs_);
    std::vector<int64_t> shape = product.x.shape;
    shape.back() = size;
    auto* out = static_cast<float*>(context.output(0, shape));
    compute_product(context, product, nullptr,
                    [&](int64_t row, float* values) { activation_.apply(values, num_outputs_, out + row * size); });
    return nullptr;
  }

  ActivationOf activation_;
  int64_t num_outputs_;
};

// The norm of residual + a product's row. The inputs begin at `first`: residual, weight, bias?.
struct NormOfSum {
  NormOfSum(const Context& context, size_t first, float epsilon, bool is_rms)
      : residual(context.input(first)), weight(context.input(first + 1)), bias(context.input(first + 2)),
        epsilon(epsilon), is_rms(is_rms) {}

  bool fits(int64_t rows, int64_t size) const {
    return residual.rows() == rows && residual.columns() == size && weight.columns() == size &&
           (!bias || bias.columns() == size);
  }

  void apply(int64_t row, const float* values, int64_t size, float* total, float* normed) const {
    norm_row(is_rms, residual.floats() + row * size, values, weight.floats(), bias.floats(), epsilon, size, total, normed);
  }

  const Tensor residual, weight, bias;
  float epsilon;
  bool is_rms;
};

struct MatMulBlocksNorm {
  static constexpr const char* kName = "MatMulBlocksNorm";
  static constexpr int kInputs[] = {ort::kInt8,  ort::kFloat, ort::kUint8, ort::kFloat,
                                    ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat, ort::kFloat, ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 4;

  explicit MatMulBlocksNorm(const Attributes& attributes)
      : block_(attributes.integer("block")),
        num_outputs_(attributes.integer("N")),
        multiple_(attributes.integer("multiple")),
        epsilon_(attributes.number("epsilon")),
        is_rms_(attributes.integer("rms") != 0) {}

  ort::Status* compute(const Context& context) const {
    BlockProduct product(context, num_outputs_);
    const NormOfSum norm(context, 5, epsilon_, is_rms_);
    const int64_t size = num_outputs_;
    if (!product.fits(block_, 8) || !norm.fits(product.rows, size))
      return context.refuse("MatMulBlocksNorm: inputs do not fit each other");
    const std::vector<int64_t> shape = norm.residual.shape;
    auto* normed = static_cast<float*>(context.output(0, shape));
    auto* total = static_cast<float*>(context.output(1, shape));
    const CodesAndFactors out(context, shape, multiple_, 2, true);
    compute_product(context, product, nullptr, [&](int64_t row, float* values) {
      float* to = normed != nullptr ? normed + row * size : thread_scratch(size);
      norm.apply(row, values, size, total != nullptr ? total + row * size : values, to);
      write_codes(out, row, to, size);
    });
    return nullptr;
  }

  int64_t block_, num_outputs_, multiple_;
  float epsilon_;
  bool is_rms_;
};

struct MatMulTilesNorm {
  static constexpr const char* kName = "MatMulTilesNorm";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat, ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit MatMulTilesNorm(const Attributes& attributes)
      : num_outputs_(attributes.integer("N")),
        epsilon_(attributes.number("epsilon")),
        is_rms_(attributes.integer("rms") != 0) {}

  ort::Status* compute(const Context& context) const {
    const TileProduct product(context, num_outputs_);
    const NormOfSum norm(context, 3, epsilon_, is_rms_);
    const int64_t size = num_outputs_;
    if (!product.fits() || !norm.fits(product.rows, size))
      return context.refuse("MatMulTilesNorm: inputs do not fit each other");
    auto* normed = static_cast<float*>(context.output(0, norm.residual.shape));
    auto* total = static_cast<float*>(context.output(1, norm.residual.shape));
    compute_product(context, product, nullptr, [&](int64_t row, float* values) {
      norm.apply(row, values, size, total != nullptr ? total + row * size : values, normed + row * size);
    });
    return nullptr;
  }

  int64_t num_outputs_;
  float epsilon_;
  bool is_rms_;
};

struct PackedAttentionOp {
  static constexpr const char* kName = "PackedAttention";
  static constexpr int kInputs[] = {ort::kFloat, ort::kInt32, ort::kFloat, ort::kFloat,
                                    ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit PackedAttentionOp(const Attributes& attributes) {
    shape_.num_heads = attributes.integer("num_heads");
    shape_.num_kv_heads = attributes.integer("num_kv_heads");
    shape_.window = attributes.integer("window");
    shape_.is_causal = attributes.integer("causal") != 0;
    shape_.uses_halves = attributes.integer("halves") != 0;
    shape_.reach = attributes.integer("reach");
    shape_.scale = attributes.number("scale");
    shape_.epsilon = attributes.number("epsilon");
  }

  ort::Status* compute(const Context& context) const {
    const Tensor qkv = context.input(0), offsets = context.input(1), cosines = context.input(2),
                 sines = context.input(3), query_norm = context.input(4), key_norm = context.input(5),
                 bias = context.input(6);
    const int64_t tokens = qkv.rows(), heads = shape_.num_heads + 2 * shape_.num_kv_heads;
    PackedAttentionShape shape = shape_;
    shape.head_dim = qkv.columns() / heads;
    shape.bias_stride = bias ? bias.columns() : 0;
    if (qkv.shape.size() != 2 || qkv.columns() % heads != 0 || !are_offsets(offsets, tokens))
      return context.refuse("PackedAttention: offsets do not fit the tokens");
    const auto* at = static_cast<const int32_t*>(offsets.data);
    int64_t longest = 0;
    for (int64_t text = 0; text + 1 < offsets.shape[0]; ++text)
      longest = std::max<int64_t>(longest, at[text + 1] - at[text]);
    const bool has_room = (!cosines || (cosines.shape[0] >= longest && cosines.columns() * 2 == shape.head_dim)) &&
                          (!bias || (shape.reach >= longest && bias.columns() >= 2 * shape.reach + 14));
    const bool are_norms = (!query_norm || query_norm.columns() == shape.head_dim) &&
                           (!key_norm || key_norm.columns() == shape.head_dim);
    if (!has_room || !are_norms) return context.refuse("PackedAttention: a text is longer than the tables");
    PackedAttentionData data{};
    data.qkv = qkv.floats();
    data.offsets = at;
    data.num_texts = offsets.shape[0] - 1;
    data.cosines = cosines.floats();
    data.sines = sines.floats();
    data.query_norm = query_norm.floats();
    data.key_norm = key_norm.floats();
    data.bias = bias.floats();
    data.out = static_cast<float*>(context.output(0, {tokens, shape.num_heads * shape.head_dim}));
    const PackedAttention attention(shape, data);
    context.share(attention.num_pieces(), attention.work() / 4, [&](int64_t piece) { attention.attend(piece); });
    return nullptr;
  }

  PackedAttentionShape shape_{};
};

struct MeanOfTexts {
  static constexpr const char* kName = "MeanOfTexts";
  static constexpr int kInputs[] = {ort::kFloat, ort::kInt32};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit MeanOfTexts(const Attributes&) {}

  ort::Status* compute(const Context& context) const {
    const Tensor x = context.input(0), offsets = context.input(1);
    if (!are_offsets(offsets, x.rows())) return context.refuse("MeanOfTexts: offsets do not fit the tokens");
    const auto* at = static_cast<const int32_t*>(offsets.data);
    const int64_t size = x.columns(), texts = offsets.shape[0] - 1;
    auto* out = static_cast<float*>(context.output(0, {texts, size}));
    context.for_each(texts, x.rows() * size, [&](int64_t text) {
      float* to = out + text * size;
      std::fill(to, to + size, 0.0f);
      for (int64_t token = at[text]; token < at[text + 1]; ++token)
        for (int64_t i = 0; i < size; ++i) to[i] += x.floats()[token * size + i];
      const float inverse = 1.0f / static_cast<float>(std::max(1, at[text + 1] - at[text]));
      for (int64_t i = 0; i < size; ++i) to[i] *= inverse;
    });
    return nullptr;
  }
};

}  // namespace

std::vector<ort::CustomOp> encoder_ops() {
  return {describe<EmbedTokens>(),      describe<Norm>(),
          describe<MatMulBlocksNorm>(), describe<MatMulBlocksActivate>(),
          describe<MatMulTiles>(),      describe<MatMulTilesNorm>(),
          describe<MatMulTilesActivate>(), describe<PackedAttentionOp>(),
          describe<MeanOfTexts>()};
}

}  // namespace vorta
