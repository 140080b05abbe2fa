// What an operator of the domain "vorta" is made of: its inputs and outputs, its attributes, ONNX Runtime's threads, and the
// table of functions by which ONNX Runtime makes and calls it.
#pragma once

#include <algorithm>
#include <atomic>
#include <iterator>
#include <string>
#include <vector>

#include "ort_abi.h"

#pragma GCC visibility push(hidden)

namespace vorta {

constexpr int64_t kMaxThreads = 64;
constexpr int64_t kInlineElements = 16384;  // smaller work is done by the calling thread

struct Tensor {
  void* data = nullptr;  // may be null where there are no elements
  std::vector<int64_t> shape;
  bool is_given = false;

  explicit operator bool() const { return is_given; }
  float* floats() const { return static_cast<float*>(data); }
  int64_t columns() const { return shape.back(); }
  int64_t rows() const {
    int64_t count = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
    return count;
  }
};

class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const {
    size_t count = 0;
    api_->at<ort::Status* (*)(const ort::KernelContext*, size_t*)>(ort::kKernelContextGetInputCount)(context_, &count);
    Tensor tensor;
    const ort::Value* value = nullptr;
    if (index < count)
      api_->at<ort::Status* (*)(const ort::KernelContext*, size_t, const ort::Value**)>(ort::kKernelContextGetInput)(
          context_, index, &value);
    if (value == nullptr) return tensor;
    ort::ShapeInfo* info = nullptr;
    api_->at<ort::Status* (*)(const ort::Value*, ort::ShapeInfo**)>(ort::kGetTensorTypeAndShape)(value, &info);
    size_t rank = 0;
    api_->at<ort::Status* (*)(const ort::ShapeInfo*, size_t*)>(ort::kGetDimensionsCount)(info, &rank);
    tensor.shape.resize(rank);
    api_->at<ort::Status* (*)(const ort::ShapeInfo*, int64_t*, size_t)>(ort::kGetDimensions)(info, tensor.shape.data(),
                                                                                              rank);
    api_->at<void (*)(ort::ShapeInfo*)>(ort::kReleaseTensorTypeAndShapeInfo)(info);
    tensor.data = data(const_cast<ort::Value*>(value));
    tensor.is_given = true;
    return tensor;
  }

  void* output(size_t index, const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    api_->at<ort::Status* (*)(ort::KernelContext*, size_t, const int64_t*, size_t, ort::Value**)>(
        ort::kKernelContextGetOutput)(context_, index, shape.data(), shape.size(), &value);
    return value == nullptr ? nullptr : data(value);
  }

  // Calls work(index) for every index below total, in parallel unless the elements are few.
  template <typename Work>
  void for_each(int64_t total, int64_t elements, const Work& work) const {
    if (total <= 1 || elements < kInlineElements) {
      for (int64_t index = 0; index < total; ++index) work(index);
      return;
    }
    auto call = [](void* data, size_t index) { (*static_cast<const Work*>(data))(static_cast<int64_t>(index)); };
    api_->at<ort::Status* (*)(const ort::KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
        ort::kKernelContextParallelFor)(context_, call, static_cast<size_t>(total), 0, const_cast<Work*>(&work));
  }

  // Likewise in runs of pieces, each thread's as long as possible: memory is read fastest in order. A thread begins with
  // half of what the one with the most has left, and takes half of it again whenever it is done.
  template <typename Work>
  void share_in_runs(int64_t pieces, int64_t elements, const Work& work) const {
    constexpr uint64_t kEnd = 0xffffffff;
    struct alignas(64) Run {
      std::atomic<uint64_t> range{0};  // first << 32 | end
    } runs[kMaxThreads];
    runs[0].range = static_cast<uint64_t>(pieces);
    std::atomic<int> arrivals{0};
    for_each(std::min(pieces, kMaxThreads), elements, [&](int64_t) {
      const int own = arrivals++;
      for (;;) {
        uint64_t range = runs[own].range;
        while ((range >> 32) < (range & kEnd)) {
          if (!runs[own].range.compare_exchange_weak(range, range + (uint64_t{1} << 32))) continue;
          work(static_cast<int64_t>(range >> 32));
          range = runs[own].range;
        }
        int from = -1;
        uint64_t most = 0, longest = 0;
        for (int run = 0; run < std::min<int>(arrivals, kMaxThreads); ++run) {
          const uint64_t other = runs[run].range, first = other >> 32, end = other & kEnd;
          if (first < end && end - first > most) {
            most = end - first;
            longest = other;
            from = run;
          }
        }
        if (from < 0) return;
        const uint64_t first = longest >> 32, end = longest & kEnd, middle = end - (most + 1) / 2;
        if (runs[from].range.compare_exchange_strong(longest, first << 32 | middle)) runs[own].range = middle << 32 | end;
      }
    });
  }

  // Likewise, each thread taking the next piece when it is done with one.
  template <typename Work>
  void share(int64_t pieces, int64_t elements, const Work& work) const {
    std::atomic<int64_t> next{0};
    for_each(std::min(pieces, kMaxThreads), elements, [&](int64_t) {
      for (int64_t piece = next++; piece < pieces; piece = next++) work(piece);
    });
  }

  ort::Status* refuse(const std::string& message) const {
    return api_->at<ort::Status* (*)(int, const char*)>(ort::kCreateStatus)(ort::kInvalidArgument, message.c_str());
  }

 private:
  void* data(ort::Value* value) const {
    void* out = nullptr;
    api_->at<ort::Status* (*)(ort::Value*, void**)>(ort::kGetTensorMutableData)(value, &out);
    return out;
  }

  const ort::Api* api_;
  ort::KernelContext* context_;
};

class Attributes {
 public:
  Attributes(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  float number(const char* name) const {
    float value = 0.0f;
    api_->at<ort::Status* (*)(const ort::KernelInfo*, const char*, float*)>(ort::kKernelInfoGetAttributeFloat)(
        info_, name, &value);
    return value;
  }

  int64_t integer(const char* name) const {
    int64_t value = 0;
    api_->at<ort::Status* (*)(const ort::KernelInfo*, const char*, int64_t*)>(ort::kKernelInfoGetAttributeInt64)(
        info_, name, &value);
    return value;
  }

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

inline float* thread_scratch(int64_t size) {
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// The outputs that all quantising operators have.
struct CodesAndFactors {
  // They are the outputs `first` and the one behind it; null where the graph has no use for them. A row has one factor,
  // or one for each `multiple` of its codes.
  CodesAndFactors(const Context& context, std::vector<int64_t> shape, int64_t multiple, size_t first = 0,
                  bool factor_of_block = false) {
    padded = multiple > 0 ? (shape.back() + multiple - 1) / multiple * multiple : shape.back();
    per_row = factor_of_block && multiple > 0 ? padded / multiple : 1;
    shape.back() = padded;
    codes = static_cast<int8_t*>(context.output(first, shape));
    shape.back() = per_row;
    factors = static_cast<float*>(context.output(first + 1, shape));
  }

  int64_t padded, per_row;
  int8_t* codes;
  float* factors;
};

template <typename Op>
struct Kernel {
  const ort::Api* api;
  Op op;
};

// The table of functions by which ONNX Runtime makes and calls an operator.
template <typename Op>
ort::CustomOp describe() {
  ort::CustomOp op{};
  op.version = ort::kCustomOpVersion;
  op.get_name = [](const ort::CustomOp*) { return Op::kName; };
  op.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.get_input_type = [](const ort::CustomOp*, size_t index) { return Op::kInputs[index]; };
  op.get_input_type_count = [](const ort::CustomOp*) { return std::size(Op::kInputs); };
  op.get_output_type = [](const ort::CustomOp*, size_t index) { return Op::kOutputs[index]; };
  op.get_output_type_count = [](const ort::CustomOp*) { return std::size(Op::kOutputs); };
  op.get_input_characteristic = [](const ort::CustomOp*, size_t index) -> int {
    return index < Op::kNumRequired ? ort::kRequired : ort::kOptional;
  };
  op.get_output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kOptional; };
  op.get_input_memory_type = [](const ort::CustomOp*, size_t) { return 0; };
  op.get_variadic_input_min_arity = [](const ort::CustomOp*) { return 1; };
  op.get_variadic_input_homogeneity = [](const ort::CustomOp*) { return 1; };
  op.get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
  op.get_variadic_output_homogeneity = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                           void** kernel) -> ort::Status* {
    *kernel = new Kernel<Op>{api, Op(Attributes(api, info))};
    return nullptr;
  };
  op.kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
    const auto* self = static_cast<const Kernel<Op>*>(kernel);
    return self->op.compute(Context(self->api, context));
  };
  op.kernel_destroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
  return op;
}

}  // namespace vorta

#pragma GCC visibility pop
