// Choosing tokens: the heavy part of vorta_server.engine.sampler, whose docstring gives the rules. Called through ctypes.
//
// A row is read two or three times: for its maximum, for the weights exp((x - max) / temperature) and their sum, and for
// the candidates. Tokens rank by (logit descending, id ascending). Where few candidates do not decide (top-p over a flat
// distribution), logits are counted into narrow buckets, and only the bucket where the border lies is sorted. The kept
// tokens are laid out by ascending id and the row's uniform number picks one by inverse CDF.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "vec.h"

namespace vorta {
namespace {

constexpr int64_t kSegment = 256;        // weights whose sum is kept, for the inverse CDF
constexpr int64_t kStripes = 1024;       // maxima that bound the k-th largest logit from below
constexpr int64_t kFewCandidates = 64;   // ranked before the wide way is taken
constexpr int64_t kBuckets = 4096;
constexpr double kBucketRange = 40.0;    // e^-40 of the largest weight: below, all logits share the last bucket
constexpr int64_t kThreadElements = 1 << 17;  // logits that are worth another thread

struct Candidate {
  float logit;
  int64_t id;
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : id < other.id;
  }
};

struct Row {
  const float* logits;
  int64_t size;
  double inverse_temperature;
  int64_t top_k;  // 0 for all
  double top_p;
  double min_p;
  double uniform;
};

struct Scratch {
  std::vector<float> weights;
  std::vector<double> segments;
  std::vector<float> stripes;
  std::vector<Candidate> candidates;
  std::vector<double> masses;
  std::vector<int32_t> buckets;
};

bool any(VecInt lanes) {
  uint64_t parts[8];
  std::memcpy(parts, &lanes, sizeof parts);
  return ((parts[0] | parts[1]) | (parts[2] | parts[3]) | (parts[4] | parts[5]) | (parts[6] | parts[7])) != 0;
}

// The largest logit, or NaN when the row holds one.
float maximum_of(const float* logits, int64_t size) {
  Vec top = splat(-std::numeric_limits<float>::infinity());
  VecInt strange = VecInt{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vec x = load(logits + i);
    strange |= x != x;
    top = maximum(x, top);
  }
  float result = largest(top);
  bool is_strange = false;
  for (int lane = 0; lane < kLanes; ++lane) is_strange |= strange[lane] != 0;
  for (; i < size; ++i) {
    is_strange |= logits[i] != logits[i];
    result = std::max(result, logits[i]);
  }
  return is_strange ? std::numeric_limits<float>::quiet_NaN() : result;
}

int64_t first_at(const float* logits, int64_t size, float value) {
  return std::find(logits, logits + size, value) - logits;
}

// Weights of all tokens and the sums of their segments; returns the total.
double weigh(const Row& row, float top, Scratch& scratch) {
  const int64_t segments = (row.size + kSegment - 1) / kSegment;
  scratch.weights.resize(row.size);
  scratch.segments.resize(segments);
  const float factor = static_cast<float>(row.inverse_temperature);
  double total = 0.0;
  for (int64_t segment = 0; segment < segments; ++segment) {
    const int64_t end = std::min(row.size, (segment + 1) * kSegment);
    Vec sums = Vec{};
    int64_t i = segment * kSegment;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec weight = exponential((load(row.logits + i) - top) * factor);
      store(scratch.weights.data() + i, weight);
      sums += weight;
    }
    double part = sum(sums);
    for (; i < end; ++i) {
      const float weight = std::exp((row.logits[i] - top) * factor);
      scratch.weights[i] = weight;
      part += weight;
    }
    scratch.segments[segment] = part;
    total += part;
  }
  return total;
}

// The first token whose running sum exceeds uniform * total; never one of weight zero.
int64_t draw_all(const Row& row, double total, const Scratch& scratch) {
  double target = row.uniform * total;
  const int64_t segments = static_cast<int64_t>(scratch.segments.size());
  int64_t segment = 0;
  while (segment + 1 < segments && target >= scratch.segments[segment]) target -= scratch.segments[segment++];
  int64_t last = -1;
  for (; segment < segments; ++segment) {
    const int64_t end = std::min(row.size, (segment + 1) * kSegment);
    for (int64_t i = segment * kSegment; i < end; ++i) {
      const double weight = scratch.weights[i];
      if (weight <= 0.0) continue;
      last = i;
      if (target < weight) return i;
      target -= weight;
    }
  }
  // Sums of floats may fall short of the total by a rounding: then it is the last token with a weight.
  for (int64_t i = row.size - 1; last < 0 && i >= 0; --i)
    if (scratch.weights[i] > 0.0f) last = i;
  return last;
}

int64_t draw_from(std::vector<Candidate>& kept, const Row& row, float top) {
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double total = 0.0;
  std::vector<double> running(kept.size());
  for (size_t i = 0; i < kept.size(); ++i)
    running[i] = total += std::exp((static_cast<double>(kept[i].logit) - top) * row.inverse_temperature);
  const double target = row.uniform * total;
  for (size_t i = 0; i < kept.size(); ++i)
    if (target < running[i]) return kept[i].id;
  return kept.back().id;
}

void collect(const Row& row, float bound, std::vector<Candidate>& out) {
  out.clear();
  int64_t i = 0;
  for (; i + kLanes <= row.size; i += kLanes) {
    const VecInt reached = load(row.logits + i) >= bound;
    if (!any(reached)) continue;
    for (int64_t lane = 0; lane < kLanes; ++lane)
      if (row.logits[i + lane] >= bound) out.push_back({row.logits[i + lane], i + lane});
  }
  for (; i < row.size; ++i)
    if (row.logits[i] >= bound) out.push_back({row.logits[i], i});
}

// The `count` best tokens, in the order of their rank.
void best(const Row& row, int64_t count, Scratch& scratch) {
  std::vector<Candidate>& found = scratch.candidates;
  count = std::min(count, row.size);
  float bound = -std::numeric_limits<float>::infinity();
  if (count < kStripes && row.size >= 4 * kStripes) {
    // Disjoint stripes have as many maxima; at least `count` logits reach the count-th largest of these.
    scratch.stripes.assign(row.logits, row.logits + kStripes);
    int64_t i = kStripes;
    for (; i + kStripes <= row.size; i += kStripes)
      for (int64_t lane = 0; lane < kStripes; lane += kLanes)
        store(scratch.stripes.data() + lane, maximum(load(scratch.stripes.data() + lane), load(row.logits + i + lane)));
    for (; i < row.size; ++i) {
      float& stripe = scratch.stripes[i % kStripes];
      stripe = std::max(stripe, row.logits[i]);
    }
    std::nth_element(scratch.stripes.begin(), scratch.stripes.begin() + (count - 1), scratch.stripes.end(),
                     std::greater<float>());
    bound = scratch.stripes[count - 1];
  }
  collect(row, bound, found);
  if (static_cast<int64_t>(found.size()) > count) {
    std::nth_element(found.begin(), found.begin() + count, found.end());
    found.resize(count);
  }
  std::sort(found.begin(), found.end());
}

// Cuts ranked candidates: top-p of `total` (infinite: of the candidates' own sum), min-p of the first. Returns false when
// top-p would reach beyond them.
bool cut(const Row& row, float top, double total, std::vector<Candidate>& ranked) {
  std::vector<double> weights(ranked.size());
  double own = 0.0;
  for (size_t i = 0; i < ranked.size(); ++i)
    own += weights[i] = std::exp((static_cast<double>(ranked[i].logit) - top) * row.inverse_temperature);
  const bool has_p = row.top_p < 1.0;
  const double goal = row.top_p * (std::isinf(total) ? own : total);
  double running = 0.0;
  size_t kept = 0;
  for (; kept < ranked.size(); ++kept) {
    if (kept > 0 && ((has_p && running >= goal) || weights[kept] < row.min_p)) break;
    running += weights[kept];
  }
  const bool is_covered = !has_p || std::isinf(total) || kept < ranked.size() || running >= goal;
  ranked.resize(kept);
  return is_covered;
}

// Sets weights whose place [size] in `buckets` is beyond the border to zero, and those below `floor`; sums up the rest.
double keep_up_to(const Row& row, int32_t border, float floor, Scratch& scratch) {
  double mass = 0.0;
  for (int64_t start = 0; start < row.size; start += kSegment) {
    const int64_t end = std::min(row.size, start + kSegment);
    Vec sums = Vec{};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      VecInt bucket;
      std::memcpy(&bucket, scratch.buckets.data() + i, sizeof bucket);
      const Vec weight = load(scratch.weights.data() + i);
      const Vec kept = ((bucket <= border) & (weight >= floor)) ? weight : Vec{};
      store(scratch.weights.data() + i, kept);
      sums += kept;
    }
    double part = sum(sums);
    for (; i < end; ++i) {
      float& weight = scratch.weights[i];
      if (scratch.buckets[i] > border || weight < floor) weight = 0.0f;
      part += weight;
    }
    scratch.segments[start / kSegment] = part;
    mass += part;
  }
  return mass;
}

// Top-p (and min-p) whose kept set may be most of the vocabulary; weights are in the scratch memory.
int64_t draw_wide(const Row& row, float top, double total, Scratch& scratch) {
  const double goal = row.top_p * total;
  scratch.buckets.resize(row.size);
  const float scale = static_cast<float>(row.inverse_temperature * (kBuckets - 1) / kBucketRange);
  const auto place_of = [&](float logit) {
    return static_cast<int32_t>(std::min((top - logit) * scale, static_cast<float>(kBuckets - 1)));
  };
  int64_t i = 0;
  for (; i + kLanes <= row.size; i += kLanes) {
    const Vec place = (top - load(row.logits + i)) * scale;
    const Vec bounded = place < static_cast<float>(kBuckets - 1) ? place : splat(kBuckets - 1);
    const VecInt bucket = __builtin_convertvector(bounded, VecInt);
    std::memcpy(scratch.buckets.data() + i, &bucket, sizeof bucket);
  }
  for (; i < row.size; ++i) scratch.buckets[i] = place_of(row.logits[i]);
  // Two histograms, so that neighbours which fall into one bucket need not wait for each other.
  scratch.masses.assign(2 * kBuckets, 0.0);
  double* even = scratch.masses.data();
  double* odd = even + kBuckets;
  for (i = 0; i + 2 <= row.size; i += 2) {
    even[scratch.buckets[i]] += scratch.weights[i];
    odd[scratch.buckets[i + 1]] += scratch.weights[i + 1];
  }
  if (i < row.size) even[scratch.buckets[i]] += scratch.weights[i];
  double above = 0.0;
  int32_t border = 0;
  for (; border + 1 < kBuckets; ++border) {
    const double here = even[border] + odd[border];
    if (above + here >= goal) break;
    above += here;
  }
  std::vector<Candidate>& inside = scratch.candidates;
  inside.clear();
  for (i = 0; i < row.size; ++i)
    if (scratch.buckets[i] == border) inside.push_back({row.logits[i], i});
  std::sort(inside.begin(), inside.end());
  for (const Candidate& candidate : inside) {
    if (above >= goal && (border > 0 || candidate.id != inside.front().id))
      scratch.weights[candidate.id] = 0.0f;  // ranks behind the border
    else
      above += scratch.weights[candidate.id];
  }
  return draw_all(row, keep_up_to(row, border, static_cast<float>(row.min_p), scratch), scratch);
}

// Min-p alone; weights are in the scratch memory. Returns the mass that is left.
double drop_below_min_p(const Row& row, float top, Scratch& scratch) {
  const float bound = static_cast<float>(row.min_p);
  const float unsure = 1e-5f * bound;  // there the double decides, not the float's rounding
  double mass = 0.0;
  for (int64_t start = 0; start < row.size; start += kSegment) {
    const int64_t end = std::min(row.size, start + kSegment);
    const auto is_kept = [&](int64_t i) {
      return std::exp((static_cast<double>(row.logits[i]) - top) * row.inverse_temperature) >= row.min_p;
    };
    Vec sums = Vec{};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec weight = load(scratch.weights.data() + i);
      const Vec kept = weight >= bound + unsure ? weight : Vec{};
      sums += kept;
      store(scratch.weights.data() + i, kept);
      const VecInt close = (weight >= bound - unsure) & (weight < bound + unsure);
      if (!any(close)) continue;
      for (int lane = 0; lane < kLanes; ++lane)
        if (close[lane] != 0 && is_kept(i + lane)) {
          scratch.weights[i + lane] = weight[lane];
          sums[lane] += weight[lane];
        }
    }
    double part = sum(sums);
    for (; i < end; ++i) {
      float& weight = scratch.weights[i];
      if (!is_kept(i)) weight = 0.0f;
      part += weight;
    }
    scratch.segments[start / kSegment] = part;
    mass += part;
  }
  return mass;
}

int64_t sample_row(const Row& row, Scratch& scratch) {
  const float top = maximum_of(row.logits, row.size);
  if (!std::isfinite(top)) return -1;
  const int64_t first = first_at(row.logits, row.size, top);
  if (row.inverse_temperature <= 0.0) return first;
  const bool has_k = row.top_k > 0 && row.top_k < row.size;
  if (has_k) {
    best(row, row.top_k, scratch);
    cut(row, top, std::numeric_limits<double>::infinity(), scratch.candidates);
    return draw_from(scratch.candidates, row, top);
  }
  if (row.top_p < 1.0) {
    const double total = weigh(row, top, scratch);
    best(row, kFewCandidates, scratch);
    if (cut(row, top, total, scratch.candidates)) return draw_from(scratch.candidates, row, top);
    return draw_wide(row, top, total, scratch);
  }
  double total = weigh(row, top, scratch);
  if (row.min_p > 0.0) total = drop_below_min_p(row, top, scratch);
  return draw_all(row, total, scratch);
}

// Calls work(row, scratch) for every row, on as many threads as the logits are worth.
template <typename Work>
void for_rows(int64_t rows, int64_t vocabulary, int64_t max_threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    static thread_local Scratch scratch;
    for (int64_t row = next++; row < rows; row = next++) work(row, scratch);
  };
  const int64_t threads = std::min({max_threads, rows, rows * vocabulary / kThreadElements + 1});
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}

}  // namespace
}  // namespace vorta

#define VORTA_EXPORT extern "C" __attribute__((visibility("default")))

// tokens[row] = the chosen id, or -1 where the row has no finite maximum. inverse_temperature 0 means greedy, top_k 0 all.
VORTA_EXPORT void vorta_sample(const float* logits, int64_t rows, int64_t vocabulary, const double* inverse_temperature,
                               const int64_t* top_k, const double* top_p, const double* min_p, const double* uniforms,
                               int64_t max_threads, int64_t* tokens) {
  vorta::for_rows(rows, vocabulary, max_threads, [&](int64_t i, vorta::Scratch& scratch) {
    const vorta::Row row{logits + i * vocabulary, vocabulary, inverse_temperature[i], top_k[i], top_p[i], min_p[i],
                         uniforms[i]};
    tokens[i] = vorta::sample_row(row, scratch);
  });
}

// normalisers[i] = log of the sum of exp over row indices[i], and its top_n best ids, most likely first.
VORTA_EXPORT void vorta_score(const float* logits, int64_t vocabulary, const int64_t* indices, int64_t count,
                              int64_t top_n, int64_t max_threads, double* normalisers, int64_t* top_ids) {
  vorta::for_rows(count, vocabulary, max_threads, [&](int64_t i, vorta::Scratch& scratch) {
    const vorta::Row row{logits + indices[i] * vocabulary, vocabulary, 1.0, 0, 1.0, 0.0, 0.0};
    const float top = vorta::maximum_of(row.logits, row.size);
    normalisers[i] = top + std::log(vorta::weigh(row, top, scratch));
    if (top_n > 0) {
      vorta::best(row, top_n, scratch);
      for (int64_t n = 0; n < top_n; ++n) top_ids[i * top_n + n] = scratch.candidates[n].id;
    }
  });
}
