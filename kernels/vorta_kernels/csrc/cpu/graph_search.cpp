// Searching an HNSW graph (Malkov and Yashunin, 2016) over 8-bit codes of its vectors. Called through ctypes; the graph's
// arrays are those of FAISS's HNSW, read where they are.
//
// A search over floats waits for memory: each vector of 384 numbers is 24 cache lines at a random place. A code is six,
// which are asked for before they are needed. The walk keeps the `width` nearest vertices seen, nearest first, and goes on
// from the nearest that it has not gone on from; when there is none, the best are compared exactly, with the floats.
//
// A code is 128 + round(127 x / max|x|), a byte, so a product of codes is exact in integers and the same on every machine:
// codes of the vectors are unsigned, those of the query signed, as VNNI wants them, and 128 times the query's sum is
// taken off. At most 255 * 127 * 65,536 < 2^31: no sum of up to 65,536 numbers overflows.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "vec.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vorta {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kVectorsAhead = 8;   // that are asked for before the one that is compared
constexpr int64_t kShortPool = 128;    // widths up to this are moved along one by one
constexpr int64_t kThreadQueries = 4;  // that are worth another thread
constexpr float kSmallest = 1e-30f;    // what is smaller throughout is coded as zeros

// As vorta_kernels/graph.py declares it.
struct Graph {
  const float* vectors;       // [rows, dimension]
  const uint8_t* codes;       // [rows, stride]
  const float* scales;        // [rows]: a vector is about (code - 128) * scale
  const float* norms;         // [rows], squared lengths; null for inner products
  const int32_t* neighbours;  // all lists of all vertices; -1 ends one
  const uint64_t* offsets;    // [rows]: where a vertex's lists begin
  const int32_t* levels;      // [levels + 1]: where the list of each level begins within them
  int64_t rows;
  int64_t dimension;
  int64_t stride;
  int64_t entry;
  int64_t top_level;
};

struct Query {
  const float* values;
  std::vector<int8_t> codes;
  int32_t offset;  // 128 times the sum of the codes
  float scale;
};

struct Near {
  float distance;
  int32_t vertex;
};

bool operator<(const Near& a, const Near& b) {
  return a.distance != b.distance ? a.distance < b.distance : a.vertex < b.vertex;
}

// sum of code[i] * query[i]; size is a multiple of 64.
int32_t product(const uint8_t* code, const int8_t* query, int64_t size) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 128 <= size; i += 128) {
    even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(code + i), _mm512_loadu_si512(query + i));
    odd = _mm512_dpbusd_epi32(odd, _mm512_loadu_si512(code + i + 64), _mm512_loadu_si512(query + i + 64));
  }
  if (i < size) even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(code + i), _mm512_loadu_si512(query + i));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
#elif defined(__AVX2__)
  // Bytes become 16-bit numbers first: vpmaddubsw would saturate.
  __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
  for (int64_t i = 0; i < size; i += 32) {
    const auto half = [&](int64_t at) {
      const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code + at)));
      const __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(query + at)));
      return _mm256_madd_epi16(c, q);
    };
    even = _mm256_add_epi32(even, half(i));
    odd = _mm256_add_epi32(odd, half(i + 16));
  }
  const __m256i both = _mm256_add_epi32(even, odd);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtsi128_si32(four);
#else
  int32_t total = 0;
  for (int64_t i = 0; i < size; ++i) total += static_cast<int32_t>(code[i]) * static_cast<int32_t>(query[i]);
  return total;
#endif
}

void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(static_cast<const char*>(from) + i);
}

float largest_magnitude(const float* values, int64_t size) {
  float top = 0.0f;
  for (int64_t i = 0; i < size; ++i) top = std::max(top, std::fabs(values[i]));
  return top;
}

// What the exact comparison is made of: the inner product, or the squared distance; the same whatever is beside it.
float exact_score(const float* a, const float* b, int64_t size, bool is_distance) {
  Vec sums[2] = {Vec{}, Vec{}};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    for (int64_t part = 0; part < 2; ++part) {
      const Vec x = load(a + i + part * kLanes), y = load(b + i + part * kLanes);
      const Vec d = x - y;
      sums[part] += is_distance ? d * d : x * y;
    }
  }
  float total = sum(sums[0] + sums[1]);
  for (; i < size; ++i) total += is_distance ? (a[i] - b[i]) * (a[i] - b[i]) : a[i] * b[i];
  return total;
}

class Search {
 public:
  // Vertices that the bits leave out are walked over and are no results; null bits leave nothing out.
  void run(const Graph& graph, const float* values, int64_t k, int64_t width, int64_t depth, const uint8_t* bits,
           float* scores, int64_t* positions) {
    graph_ = &graph;
    bits_ = bits;
    width_ = width;
    depth_ = depth;
    quantise(values);
    const size_t words = (graph.rows + 63) / 64, most = list_size(0);
    if (seen_.size() < words) seen_.resize(words);
    if (pool_.size() <= static_cast<size_t>(width)) pool_.resize(width + 1);
    if (distances_.size() < most) distances_.resize(most);
    if (visited_.empty()) visited_.resize(1);
    results_.clear();
    size_ = next_ = num_seen_ = num_fresh_ = 0;
    const Near start = descend();
    visited_[num_seen_++] = start.vertex;
    seen_[start.vertex >> 6] |= uint64_t{1} << (start.vertex & 63);
    take(start);
    while (next_ < size_) {
      gather();
      compare();
    }
    finish();
    rank(k, scores, positions);
  }

 private:
  // Exact scores of the results, best first, equal ones by position.
  void rank(int64_t k, float* scores, int64_t* positions) {
    const bool is_distance = graph_->norms != nullptr;
    const int64_t size = graph_->dimension, count = static_cast<int64_t>(results_.size());
    for (int64_t i = 0; i < count; ++i) {
      if (i + kVectorsAhead < count) ask_for_vector(i + kVectorsAhead);
      const float score = exact_score(graph_->vectors + results_[i].vertex * size, query_.values, size, is_distance);
      results_[i].distance = is_distance ? score : -score;
    }
    const int64_t kept = std::min(k, count);
    std::partial_sort(results_.begin(), results_.begin() + kept, results_.end());
    for (int64_t i = 0; i < k; ++i) {
      const float value = i < kept ? results_[i].distance : std::numeric_limits<float>::infinity();
      scores[i] = is_distance ? value : -value;
      positions[i] = i < kept ? results_[i].vertex : -1;
    }
  }

  void quantise(const float* values) {
    const int64_t size = graph_->dimension;
    query_.values = values;
    query_.codes.assign(graph_->stride, 0);
    const float top = largest_magnitude(values, size);
    const float inverse = top > kSmallest ? 127.0f / top : 0.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < size; ++i) {
      query_.codes[i] = static_cast<int8_t>(std::lrintf(values[i] * inverse));
      total += query_.codes[i];
    }
    query_.offset = 128 * total;
    query_.scale = top / 127.0f;
  }

  // Less is nearer: the squared distance less the query's length, or the inner product's negative over the query's scale.
  float distance(int32_t vertex) const {
    const uint8_t* code = graph_->codes + vertex * graph_->stride;
    const float dot = static_cast<float>(product(code, query_.codes.data(), graph_->stride) - query_.offset);
    const float scaled = dot * graph_->scales[vertex];
    return graph_->norms == nullptr ? -scaled : std::fma(-2.0f * query_.scale, scaled, graph_->norms[vertex]);
  }

  void ask_for(int32_t vertex) const {
    prefetch(graph_->codes + vertex * graph_->stride, graph_->stride);
    __builtin_prefetch(graph_->scales + vertex);
    if (graph_->norms != nullptr) __builtin_prefetch(graph_->norms + vertex);
  }

  void ask_for_vector(int64_t result) const {
    const int64_t size = graph_->dimension;
    prefetch(graph_->vectors + results_[result].vertex * size, size * sizeof(float));
  }

  const int32_t* list(int32_t vertex, int64_t level) const {
    return graph_->neighbours + graph_->offsets[vertex] + graph_->levels[level];
  }

  int64_t list_size(int64_t level) const { return graph_->levels[level + 1] - graph_->levels[level]; }

  // The nearest vertex of level 1 that is found by always going to the nearest neighbour.
  Near descend() const {
    Near best{distance(static_cast<int32_t>(graph_->entry)), static_cast<int32_t>(graph_->entry)};
    for (int64_t level = graph_->top_level; level > 0; --level) {
      for (int32_t from = -1; from != best.vertex;) {
        from = best.vertex;
        const int32_t* others = list(from, level);
        const int64_t most = list_size(level);
        int64_t count = 0;
        while (count < most && others[count] >= 0) ask_for(others[count++]);
        for (int64_t i = 0; i < count; ++i) {
          const Near other{distance(others[i]), others[i]};
          if (other < best) best = other;
        }
      }
    }
    return best;
  }

  // Asks for the codes of those neighbours of the next vertex that were not seen before.
  void gather() {
    const int32_t* others = list(pool_[next_].vertex, 0);
    pool_[next_].vertex = ~pool_[next_].vertex;
    while (next_ < size_ && pool_[next_].vertex < 0) ++next_;
    const int64_t most = list_size(0);
    if (static_cast<int64_t>(visited_.size()) < num_seen_ + most) visited_.resize(2 * (num_seen_ + most));
    int32_t* fresh = visited_.data() + num_seen_;
    uint64_t* seen = seen_.data();
    int64_t count = 0;
    for (int64_t i = 0; i < most && others[i] >= 0; ++i) {
      const int32_t vertex = others[i];
      const uint64_t word = seen[vertex >> 6], bit = uint64_t{1} << (vertex & 63);
      fresh[count] = vertex;
      count += (word & bit) == 0;
      seen[vertex >> 6] = word | bit;
    }
    for (int64_t i = 0; i < count; ++i) ask_for(fresh[i]);
    if (next_ < size_) prefetch(list(pool_[next_].vertex, 0), most * sizeof(int32_t));
    num_fresh_ = count;
    num_seen_ += count;
  }

  void compare() {
    const int32_t* fresh = visited_.data() + num_seen_ - num_fresh_;
    for (int64_t i = 0; i < num_fresh_; ++i) distances_[i] = distance(fresh[i]);
    for (int64_t i = 0; i < num_fresh_; ++i) take({distances_[i], fresh[i]});
  }

  // Keeps a vertex if it is among the nearest. Those that were gone on from have their number's complement.
  void take(Near near) {
    if (bits_ != nullptr && (bits_[near.vertex >> 3] >> (near.vertex & 7) & 1)) take_result(near);
    if (size_ == width_ && !(near.distance < pool_[size_ - 1].distance)) return;
    __builtin_prefetch(graph_->offsets + near.vertex);
    Near* pool = pool_.data();
    int64_t at = size_;
    if (width_ <= kShortPool) {
      for (; at > 0 && near.distance < pool[at - 1].distance; --at) pool[at] = pool[at - 1];
    } else {
      const auto is_nearer = [](const Near& a, const Near& b) { return a.distance < b.distance; };
      at = std::upper_bound(pool, pool + size_, near, is_nearer) - pool;
      std::copy_backward(pool + at, pool + size_, pool + size_ + 1);
    }
    pool[at] = near;
    size_ = std::min(size_ + 1, width_);
    next_ = std::min(next_, at);
  }

  void take_result(Near near) {
    if (static_cast<int64_t>(results_.size()) < depth_) {
      results_.push_back(near);
      std::push_heap(results_.begin(), results_.end());
    } else if (near < results_.front()) {
      std::pop_heap(results_.begin(), results_.end());
      results_.back() = near;
      std::push_heap(results_.begin(), results_.end());
    }
  }

  // Cleans up after the walk and asks for the vectors that are to be compared.
  void finish() {
    for (int64_t i = 0; i < num_seen_; ++i) seen_[visited_[i] >> 6] = 0;
    if (bits_ == nullptr) {
      for (int64_t i = 0; i < std::min(size_, depth_); ++i) results_.push_back({0.0f, ~pool_[i].vertex});
    }
    for (int64_t i = 0; i < std::min<int64_t>(results_.size(), kVectorsAhead); ++i) ask_for_vector(i);
  }

  const Graph* graph_ = nullptr;
  const uint8_t* bits_ = nullptr;
  int64_t width_ = 0;
  int64_t depth_ = 0;
  Query query_;
  std::vector<Near> pool_;  // sorted; the first size_ count
  int64_t size_ = 0;
  int64_t next_ = 0;              // the first of the pool that was not gone on from
  std::vector<Near> results_;     // a heap, the farthest on top, while there are bits
  std::vector<uint64_t> seen_;    // a bit for each vertex; no bit is set between two walks
  std::vector<int32_t> visited_;  // what was seen, the fresh last
  int64_t num_seen_ = 0;
  int64_t num_fresh_ = 0;
  std::vector<float> distances_;  // of the fresh
};

}  // namespace
}  // namespace vorta

#define VORTA_EXPORT extern "C" __attribute__((visibility("default")))

// Codes of vectors [rows, dimension]: codes [rows, stride], scales [rows] and, unless null, squared lengths [rows].
VORTA_EXPORT void vorta_graph_quantise(const float* vectors, int64_t rows, int64_t dimension, int64_t stride,
                                       uint8_t* codes, float* scales, float* norms) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = vectors + row * dimension;
    uint8_t* to = codes + row * stride;
    const float top = vorta::largest_magnitude(from, dimension);
    const float inverse = top > vorta::kSmallest ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < dimension; ++i) to[i] = static_cast<uint8_t>(128 + std::lrintf(from[i] * inverse));
    std::fill(to + dimension, to + stride, static_cast<uint8_t>(128));
    scales[row] = top / 127.0f;
    if (norms != nullptr) norms[row] = vorta::exact_score(from, from, dimension, false);
  }
}

// scores and positions [queries, k], best first, of queries [queries, dimension]; position -1 where there are fewer.
// width >= k: how many vertices a walk keeps. depth >= k: how many of them are compared exactly. bits: of positions that
// count, or null.
VORTA_EXPORT void vorta_graph_search(const vorta::Graph* graph, const float* queries, int64_t count, int64_t k,
                                     int64_t width, int64_t depth, const uint8_t* bits, int64_t max_threads,
                                     float* scores, int64_t* positions) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    static thread_local std::unique_ptr<vorta::Search> kept = std::make_unique<vorta::Search>();
    vorta::Search& search = *kept;
    for (int64_t i = next++; i < count; i = next++) {
      search.run(*graph, queries + i * graph->dimension, k, width, depth, bits, scores + i * k, positions + i * k);
    }
  };
  const int64_t threads = std::min(max_threads, count / vorta::kThreadQueries);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}
