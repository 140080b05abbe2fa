// The operators of the domain "vorta" for ONNX Runtime on a CPU; their threads are the session's.
//
//   Quantise         x [..., K]                                           -> codes int8 [..., P], factor [..., 1]
//   AddNormQuantise  residual [..., K], weight [K], delta [..., K]?       -> codes, factor, total [..., K]
//   GateQuantise     gate_and_up [..., 2 K]                               -> codes, factor
//   MatMulBlocks     codes [..., P], factor [..., 1], weights uint8 [tiles, ...], scales [tiles, P / block, 16], bias?
//                                                                         -> y [..., N]
//   MatMulBlocksGate codes, factor, weights uint8, scales, bias?          -> codes, factor of silu(gate) * up [..., N]
//   MatMulBlocksAddNorm  codes, factor, weights, scales, bias?, residual [..., N], weight [N]
//                                                                         -> codes, factor, total [..., N]?
//   Attention        qkv, key?, value?, past_key, past_value, last, cosines, sines
//                                                                         -> out, present_key, present_value
//
// Those of text encoders are in encoder_ops.cpp. P is K rounded up to a multiple of the attribute `multiple`; rows.h, gemm.h and attention.h say the rest.
#include <algorithm>
#include <vector>

#include "attention.h"
#include "encoder_ops.h"
#include "op.h"
#include "product.h"
#include "rows.h"
#include "vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#pragma GCC visibility push(hidden)

namespace vorta {
namespace {

struct Quantise {
  static constexpr const char* kName = "Quantise";
  static constexpr int kInputs[] = {ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 1;

  explicit Quantise(const Attributes& attributes) : multiple_(attributes.integer("multiple")) {}

  ort::Status* compute(const Context& context) const {
    const Tensor x = context.input(0);
    const int64_t rows = x.rows(), size = x.columns();
    const CodesAndFactors out(context, x.shape, multiple_);
    context.for_each(rows, rows * size, [&](int64_t row) {
      out.factors[row] = quantise_row(x.floats() + row * size, size, out.padded, out.codes + row * out.padded);
    });
    return nullptr;
  }

  int64_t multiple_;
};

struct AddNormQuantise {
  static constexpr const char* kName = "AddNormQuantise";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat, ort::kFloat};
  static constexpr size_t kNumRequired = 2;

  explicit AddNormQuantise(const Attributes& attributes)
      : multiple_(attributes.integer("multiple")), epsilon_(attributes.number("epsilon")) {}

  ort::Status* compute(const Context& context) const {
    const Tensor residual = context.input(0), weight = context.input(1), delta = context.input(2);
    const int64_t rows = residual.rows(), size = residual.columns();
    if (delta && (delta.rows() != rows || delta.columns() != size))
      return context.refuse("AddNormQuantise: delta and residual differ in shape");
    const CodesAndFactors out(context, residual.shape, multiple_);
    float* total = delta ? static_cast<float*>(context.output(2, residual.shape)) : nullptr;
    context.for_each(rows, rows * size, [&](int64_t row) {
      const int64_t start = row * size;
      out.factors[row] = add_norm_quantise_row(residual.floats() + start, delta ? delta.floats() + start : nullptr,
                                               weight.floats(), epsilon_, size, out.padded,
                                               total != nullptr ? total + start : nullptr, thread_scratch(size),
                                               out.codes + row * out.padded);
    });
    return nullptr;
  }

  int64_t multiple_;
  float epsilon_;
};

struct GateQuantise {
  static constexpr const char* kName = "GateQuantise";
  static constexpr int kInputs[] = {ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 1;

  explicit GateQuantise(const Attributes& attributes) : multiple_(attributes.integer("multiple")) {}

  ort::Status* compute(const Context& context) const {
    const Tensor both = context.input(0);
    const int64_t rows = both.rows(), size = both.columns() / 2;
    std::vector<int64_t> shape = both.shape;
    shape.back() = size;
    const CodesAndFactors out(context, shape, multiple_);
    context.for_each(rows, rows * size, [&](int64_t row) {
      const float* gate = both.floats() + row * 2 * size;
      out.factors[row] = gate_quantise_row(gate, gate + size, size, out.padded, thread_scratch(size),
                                           out.codes + row * out.padded);
    });
    return nullptr;
  }

  int64_t multiple_;
};

struct MatMulBlocks {
  static constexpr const char* kName = "MatMulBlocks";
  static constexpr int kInputs[] = {ort::kInt8, ort::kFloat, ort::kUint8, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat};
  static constexpr size_t kNumRequired = 4;

  explicit MatMulBlocks(const Attributes& attributes)
      : bits_(static_cast<int>(attributes.integer("bits"))),
        block_(attributes.integer("block")),
        num_outputs_(attributes.integer("N")) {}

  ort::Status* compute(const Context& context) const {
    BlockProduct product(context, num_outputs_);
    if (!product.fits(block_, bits_))
      return context.refuse("MatMulBlocks: codes, weights and scales do not fit each other");
    std::vector<int64_t> shape = product.x.shape;
    shape.back() = num_outputs_;
    compute_product(context, product, static_cast<float*>(context.output(0, shape)), [](int64_t, float*) {});
    return nullptr;
  }

  int bits_;
  int64_t block_, num_outputs_;
};

inline Vec gated(Vec gate, Vec up) {
  // e^-x overflows to infinity far below zero, where the quotient is 0 as it should be.
  const Vec below = 1.0f + exponential(-(gate < -87.0f ? splat(-87.0f) : gate));
#if defined(__AVX512F__)
  // A division takes as long as all the rest: 14 bits of the reciprocal, and a step of Newton's for the others.
  const __m512 number = reinterpret_cast<__m512>(below), guess = _mm512_rcp14_ps(number);
  const __m512 rest = _mm512_fnmadd_ps(number, guess, _mm512_set1_ps(2.0f));
  return gate * up * reinterpret_cast<Vec>(_mm512_mul_ps(guess, rest));
#else
  return gate / below * up;
#endif
}

// Outputs of gate and up lie in turn, 16 of each: what they make is at hand when a pair of tiles is done.
struct MatMulBlocksGate {
  static constexpr const char* kName = "MatMulBlocksGate";
  static constexpr int kInputs[] = {ort::kInt8, ort::kFloat, ort::kUint8, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat};
  static constexpr size_t kNumRequired = 4;

  explicit MatMulBlocksGate(const Attributes& attributes)
      : bits_(static_cast<int>(attributes.integer("bits"))),
        block_(attributes.integer("block")),
        size_(attributes.integer("N")),
        multiple_(attributes.integer("multiple")) {}

  ort::Status* compute(const Context& context) const {
    const int64_t width = (size_ + kTile - 1) / kTile * kTile;
    BlockProduct product(context, 2 * width);
    if (!product.fits(block_, bits_) || (product.bias && product.bias.columns() != 2 * width))
      return context.refuse("MatMulBlocksGate: codes, weights and scales do not fit each other");
    std::vector<int64_t> shape = product.x.shape;
    shape.back() = size_;
    const CodesAndFactors out(context, shape, multiple_);
    const int64_t rows = product.rows, tiles = product.num_tiles();
    const int64_t work = rows * tiles * product.work_of_tile() / 64;
    const auto quantise = [&](int64_t row, const float* values) {
      out.factors[row] = quantise_row(values, size_, out.padded, out.codes + row * out.padded);
    };
    if (rows >= kManyRows) {
      const RowPieces pieces(rows, product.piece_rows());
      const int64_t step = std::max<int64_t>(2, kCachedBytes / std::max<int64_t>(1, product.tile_bytes()) / 2 * 2);
      context.share(pieces.count, work, [&](int64_t piece) {
        const int64_t first = pieces.first(piece), count = pieces.first(piece + 1) - first;
        float* values = scratch_of<1, float>(count * width);
        const int32_t* packed = product.prepare(first, count);
        for (int64_t tile = 0; tile < tiles; tile += step)
          gate(product, first, count, packed, tile, std::min(tile + step, tiles), values, width);
        for (int64_t row = 0; row < count; ++row) quantise(first + row, values + row * width);
      });
      return nullptr;
    }
    float* values = scratch_of<2, float>(rows * width);
    const int32_t* packed = product.prepare(0, rows);
    const int64_t per_piece = (tiles_per_piece(rows, product.work_of_tile()) + 1) / 2 * 2;
    context.share_in_runs((tiles + per_piece - 1) / per_piece, work, [&](int64_t piece) {
      const int64_t first = piece * per_piece;
      gate(product, 0, rows, packed, first, std::min(first + per_piece, tiles), values, width);
    });
    context.for_each(rows, rows * width, [&](int64_t row) { quantise(row, values + row * width); });
    return nullptr;
  }

  // The values [count, width] of an even number of tiles.
  static void gate(const BlockProduct& product, int64_t first, int64_t count, const int32_t* packed, int64_t tile,
                   int64_t end, float* values, int64_t width) {
    const int64_t stride = (end - tile) * kTile;
    float* both = scratch_of<4, float>(count * stride);
    product.multiply_rows(first, count, packed, tile, end, both, stride);
    for (int64_t row = 0; row < count; ++row)
      for (int64_t i = 0; i < stride; i += 2 * kTile)
        store(values + row * width + (tile * kTile + i) / 2,
              gated(load(both + row * stride + i), load(both + row * stride + i + kTile)));
  }

  int bits_;
  int64_t block_, size_, multiple_;
};

struct MatMulBlocksAddNorm {
  static constexpr const char* kName = "MatMulBlocksAddNorm";
  static constexpr int kInputs[] = {ort::kInt8,  ort::kFloat, ort::kUint8, ort::kFloat,
                                    ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kInt8, ort::kFloat, ort::kFloat};
  static constexpr size_t kNumRequired = 4;

  explicit MatMulBlocksAddNorm(const Attributes& attributes)
      : bits_(static_cast<int>(attributes.integer("bits"))),
        block_(attributes.integer("block")),
        num_outputs_(attributes.integer("N")),
        multiple_(attributes.integer("multiple")),
        epsilon_(attributes.number("epsilon")) {}

  ort::Status* compute(const Context& context) const {
    BlockProduct product(context, num_outputs_);
    const Tensor residual = context.input(5), weight = context.input(6);
    const int64_t size = num_outputs_;
    if (!product.fits(block_, bits_) || !residual || residual.rows() != product.rows || residual.columns() != size ||
        !weight || weight.columns() != size)
      return context.refuse("MatMulBlocksAddNorm: inputs do not fit each other");
    const CodesAndFactors out(context, residual.shape, multiple_);
    auto* total = static_cast<float*>(context.output(2, residual.shape));
    compute_product(context, product, nullptr, [&](int64_t row, float* values) {
      out.factors[row] = add_norm_quantise_row(residual.floats() + row * size, values, weight.floats(), epsilon_, size,
                                               out.padded, total != nullptr ? total + row * size : values,
                                               thread_scratch(size), out.codes + row * out.padded);
    });
    return nullptr;
  }

  int bits_;
  int64_t block_, num_outputs_, multiple_;
  float epsilon_;
};

struct AttentionOp {
  static constexpr const char* kName = "Attention";
  static constexpr int kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat,
                                    ort::kFloat, ort::kInt32, ort::kFloat, ort::kFloat};
  static constexpr int kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr size_t kNumRequired = 1;  // the rest are checked by hand: optional ones lie between

  explicit AttentionOp(const Attributes& attributes)
      : num_heads_(attributes.integer("num_heads")),
        num_kv_heads_(attributes.integer("num_kv_heads")),
        window_(attributes.integer("window")),
        scale_(attributes.number("scale")) {}

  ort::Status* compute(const Context& context) const {
    const Tensor qkv = context.input(0), key = context.input(1), value = context.input(2),
                 past_key = context.input(3), past_value = context.input(4), last = context.input(5),
                 cosines = context.input(6), sines = context.input(7);
    if (!past_key || !past_value || !last || !cosines || !sines)
      return context.refuse("Attention: an input is missing");
    const int64_t dim = past_key.shape[3];
    const int64_t width = (num_heads_ + (key ? 0 : 2 * num_kv_heads_)) * dim;
    if (qkv.shape.size() != 3 || qkv.columns() != width || cosines.columns() != dim / 2 ||
        past_key.shape[1] != num_kv_heads_ || past_value.shape != past_key.shape ||
        static_cast<bool>(key) != static_cast<bool>(value))
      return context.refuse("Attention: queries, slots and rotary tables do not fit each other");
    AttentionShape shape{};
    shape.batch = qkv.shape[0];
    shape.steps = qkv.shape[1];
    shape.num_heads = num_heads_;
    shape.num_kv_heads = num_kv_heads_;
    shape.head_dim = dim;
    shape.past_capacity = shape.present_capacity = past_key.shape[2];
    shape.window = window_;
    shape.scale = scale_;
    const auto* lasts = static_cast<const int32_t*>(last.data);
    for (int64_t row = 0; row < shape.batch; ++row) {
      const int64_t needed = std::max<int64_t>(lasts[row] + 1, shape.steps);
      if (needed > shape.present_capacity || needed > cosines.shape[0])
        return context.refuse("Attention: more positions than a slot or the rotary tables hold");
    }
    std::vector<int64_t> out_shape = {shape.batch, shape.steps, num_heads_ * shape.head_dim};
    AttentionData data{};
    data.qkv = qkv.floats();
    data.key = key.floats();
    data.value = value.floats();
    data.past_key = past_key.floats();
    data.past_value = past_value.floats();
    data.last = lasts;
    data.cosines = cosines.floats();
    data.sines = sines.floats();
    data.out = static_cast<float*>(context.output(0, out_shape));
    data.present_key = static_cast<float*>(context.output(1, past_key.shape));
    data.present_value = static_cast<float*>(context.output(2, past_value.shape));
    Attention attention(shape, data);
    attention.use(scratch_of<3, uint32_t>(attention.memory_size()));
    const int64_t elements = shape.batch * shape.steps * shape.head_dim;
    if (shape.steps == 1) {
      // One row's keys are read by the thread that wrote the new one.
      int64_t positions = 0;
      for (int64_t row = 0; row < shape.batch; ++row) positions += lasts[row] + 1;
      context.for_each(attention.num_appends(), positions * num_heads_ * shape.head_dim, [&](int64_t index) {
        attention.append(index);
        attention.attend(index);
      });
      return nullptr;
    }
    context.for_each(attention.num_appends(), elements * num_kv_heads_, [&](int64_t index) { attention.append(index); });
    context.for_each(attention.num_blocks(), elements * num_heads_ * shape.steps,
                     [&](int64_t index) { attention.attend(index); });
    return nullptr;
  }

  int64_t num_heads_, num_kv_heads_, window_;
  float scale_;
};

}  // namespace
}  // namespace vorta

#pragma GCC visibility pop

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  using namespace vorta;
  static const ort::CustomOp ops[] = {describe<Quantise>(), describe<AddNormQuantise>(), describe<GateQuantise>(),
                                      describe<MatMulBlocks>(), describe<MatMulBlocksGate>(), describe<MatMulBlocksAddNorm>(),
                                      describe<AttentionOp>()};
  static const std::vector<ort::CustomOp> of_encoders = encoder_ops();
  using ort::Status;
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (api == nullptr) return nullptr;  // ONNX Runtime is older than these operators, and will not find them
  ort::CustomOpDomain* domain = nullptr;  // lives as long as the process: sessions refer to it
  Status* status =
      api->at<Status* (*)(const char*, ort::CustomOpDomain**)>(ort::kCreateCustomOpDomain)("vorta", &domain);
  const auto add = api->at<Status* (*)(ort::CustomOpDomain*, const ort::CustomOp*)>(ort::kCustomOpDomainAdd);
  for (const ort::CustomOp& op : ops)
    if (status == nullptr) status = add(domain, &op);
  for (const ort::CustomOp& op : of_encoders)
    if (status == nullptr) status = add(domain, &op);
  if (status == nullptr)
    status = api->at<Status* (*)(ort::SessionOptions*, ort::CustomOpDomain*)>(ort::kAddCustomOpDomain)(options, domain);
  return status;
}
