// Choosing tokens: the heavy part of vorta_server.engine.sampler, whose docstring gives the rules. Called through ctypes.
//
// A row is read for its maximum, for the sums of the weights exp((x - max) / temperature) by segment, and for the
// candidates; weights are not stored, but computed again where the drawn token lies. Tokens rank by (logit descending, id
// ascending). Where few candidates do not decide (top-p over a flat distribution), a sample of the row says between which
// logits the border lies, and only what is between them is looked at closely. The kept tokens are laid out by ascending
// id and the row's uniform number picks one by inverse CDF.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "vec.h"

namespace vorta {
namespace {

constexpr int64_t kSegment = 256;        // weights whose sum is kept, for the inverse CDF
constexpr int64_t kStripes = 1024;       // maxima that bound the k-th largest logit from below
constexpr int64_t kFewCandidates = 64;   // ranked before the wide way is taken
constexpr int64_t kBuckets = 1024;
constexpr int64_t kSample = 4096;        // logits that say where the border of top-p is
constexpr int64_t kRough = 16;           // one in so many of these says whether it is worth to look
constexpr double kSureness = 4.5;        // standard deviations that the border may be away from where they say
constexpr int64_t kThreadElements = 1 << 17;  // logits that are worth another thread

constexpr float kNoLimit = -std::numeric_limits<float>::infinity();

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
  std::vector<double> segments;
  std::vector<float> stripes;
  std::vector<Candidate> candidates;
  std::vector<float> logits, weights;  // of tokens that a closer look is taken at, with their ids
  std::vector<int32_t> ids, places;
  std::vector<float> sample;
  std::vector<double> masses;
  std::vector<double> squares;
};

bool any(VecInt lanes) {
  uint64_t parts[8];
  std::memcpy(parts, &lanes, sizeof parts);
  return ((parts[0] | parts[1]) | (parts[2] | parts[3]) | (parts[4] | parts[5]) | (parts[6] | parts[7])) != 0;
}

// Calls found(i) for each lane that is set, ascending.
template <typename Found>
void for_set(VecInt lanes, const Found& found) {
  const VecByte bytes = __builtin_convertvector(lanes, VecByte);
  uint64_t halves[2];
  std::memcpy(halves, &bytes, sizeof halves);
  for (int half = 0; half < 2; ++half)
    for (uint64_t left = halves[half]; left != 0;) {
      const int byte = __builtin_ctzll(left) / 8;
      found(8 * half + byte);
      left &= ~(uint64_t{0xff} << (8 * byte));
    }
}

// Appends the lanes of `values` that are set to `to`, which has room for a whole vector; returns how many.
#ifdef __AVX512F__
int64_t pack(VecInt lanes, Vec values, float* to) {
  const __mmask16 mask = _mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes));
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, reinterpret_cast<__m512>(values)));
  return __builtin_popcount(mask);
}
#else
int64_t pack(VecInt lanes, Vec values, float* to) {
  int64_t count = 0;
  for_set(lanes, [&](int64_t lane) { to[count++] = values[lane]; });
  return count;
}
#endif

// The largest logit, or NaN when the row holds one. Leaves in the scratch memory the maxima of kStripes disjoint stripes
// where rows are long enough for them.
float scan(const Row& row, Scratch& scratch) {
  const float* logits = row.logits;
  VecInt strange = VecInt{};
  int64_t i = 0;
  scratch.stripes.assign(kStripes, -std::numeric_limits<float>::infinity());
  float* stripes = scratch.stripes.data();
  for (; i + kStripes <= row.size; i += kStripes)
    for (int64_t lane = 0; lane < kStripes; lane += kLanes) {
      const Vec x = load(logits + i + lane);
      strange |= x != x;
      store(stripes + lane, maximum(x, load(stripes + lane)));
    }
  bool is_strange = any(strange);
  for (; i < row.size; ++i) {
    is_strange |= logits[i] != logits[i];
    float& stripe = stripes[i % kStripes];
    stripe = std::max(stripe, logits[i]);
  }
  Vec top = load(stripes);
  for (int64_t lane = kLanes; lane < kStripes; lane += kLanes) top = maximum(load(stripes + lane), top);
  return is_strange ? std::numeric_limits<float>::quiet_NaN() : largest(top);
}

int64_t first_at(const float* logits, int64_t size, float value) {
  int64_t i = 0;
  while (i + kLanes <= size && !any(load(logits + i) == value)) i += kLanes;
  return std::find(logits + i, logits + size, value) - logits;
}

// Which tokens are left: those with a logit above `border`, and those that have it up to the id `last`.
struct Kept {
  float border = kNoLimit;
  int64_t last = std::numeric_limits<int64_t>::max();

  bool operator()(float logit, int64_t id) const { return logit > border || (logit == border && id <= last); }
};

int64_t num_segments(const Row& row) { return (row.size + kSegment - 1) / kSegment; }

// The same weight for a logit wherever it stands.
float weight_of(const Row& row, float top, float logit) {
  return exponential(splat((logit - top) * static_cast<float>(row.inverse_temperature)))[0];
}

// Sums by segment of the weights of the tokens with logits of at least `least`; returns the total. With kCollects the
// candidates are the tokens with logits of at least `bound`.
template <bool kCollects>
double weigh(const Row& row, float top, float least, float bound, Scratch& scratch) {
  if (kCollects) scratch.candidates.clear();
  scratch.segments.resize(num_segments(row));
  const float factor = static_cast<float>(row.inverse_temperature);
  double total = 0.0;
  for (size_t segment = 0; segment < scratch.segments.size(); ++segment) {
    int64_t i = static_cast<int64_t>(segment) * kSegment;
    const int64_t end = std::min(row.size, i + kSegment);
    Vec sums = Vec{}, others = Vec{};
    // Two at a time: a chain of additions would be as long as an exponential.
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const Vec a = load(row.logits + i), b = load(row.logits + i + kLanes);
      const Vec first = exponential((a - top) * factor), second = exponential((b - top) * factor);
      sums += a >= least ? first : Vec{};
      others += b >= least ? second : Vec{};
      if (kCollects && any((a >= bound) | (b >= bound)))
        for (int64_t at = i; at < i + 2 * kLanes; ++at)
          if (row.logits[at] >= bound) scratch.candidates.push_back({row.logits[at], at});
    }
    double part = sum(sums + others);
    for (; i < end; ++i) {
      if (row.logits[i] >= least) part += weight_of(row, top, row.logits[i]);
      if (kCollects && row.logits[i] >= bound) scratch.candidates.push_back({row.logits[i], i});
    }
    scratch.segments[segment] = part;
    total += part;
  }
  return total;
}

// The first kept token whose running sum exceeds uniform * total; never one of weight zero.
int64_t draw_all(const Row& row, float top, const Kept& kept, double total, const Scratch& scratch) {
  double target = row.uniform * total;
  const int64_t segments = num_segments(row);
  int64_t segment = 0;
  while (segment + 1 < segments && target >= scratch.segments[segment]) target -= scratch.segments[segment++];
  int64_t last = -1;
  for (int64_t i = segment * kSegment; i < row.size; ++i) {
    if (!kept(row.logits[i], i)) continue;
    const double weight = weight_of(row, top, row.logits[i]);
    if (weight <= 0.0) continue;
    last = i;
    if (target < weight) return i;
    target -= weight;
  }
  // Sums of floats may fall short of the total by a rounding: then it is the last token with a weight.
  for (int64_t i = segment * kSegment - 1; last < 0 && i >= 0; --i)
    if (kept(row.logits[i], i) && weight_of(row, top, row.logits[i]) > 0.0f) last = i;
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
    if (any(reached)) for_set(reached, [&](int64_t lane) { out.push_back({row.logits[i + lane], i + lane}); });
  }
  for (; i < row.size; ++i)
    if (row.logits[i] >= bound) out.push_back({row.logits[i], i});
}

// A logit that at least `count` tokens reach, and not many more. After `scan`, whose stripes it sorts in part: the
// first `count` are then the largest.
float bound_of(const Row& row, int64_t count, Scratch& scratch) {
  if (count >= kStripes || row.size < 4 * kStripes) return kNoLimit;
  // At least `count` logits reach the count-th largest of the stripes' maxima.
  std::nth_element(scratch.stripes.begin(), scratch.stripes.begin() + (count - 1), scratch.stripes.end(),
                   std::greater<float>());
  return scratch.stripes[count - 1];
}

// Leaves of the candidates the `count` best, in the order of their rank.
void rank(int64_t count, std::vector<Candidate>& found) {
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

// The least logit that min-p leaves: what decides is the double, and it grows with the logit.
float least_of_min_p(const Row& row, float top) {
  const auto is_kept = [&](float logit) {
    return std::exp((static_cast<double>(logit) - top) * row.inverse_temperature) >= row.min_p;
  };
  float logit = static_cast<float>(top + std::log(row.min_p) / row.inverse_temperature);
  logit = std::min(logit, top);
  while (logit < top && !is_kept(logit)) logit = std::nextafter(logit, top);
  for (float next = std::nextafter(logit, kNoLimit); next > kNoLimit && is_kept(next);) {
    logit = next;
    next = std::nextafter(logit, kNoLimit);
  }
  return logit;
}

// Two logits between which the border of top-p lies.
struct Bracket {
  float low, high;
};

// Where the border of top-p lies below `cap`, going by a sample of the row and by the largest of the stripes' maxima, of
// which kFewCandidates reach the cap. False when it may lie above. The share that a sample has above a logit errs by the
// ratio estimator's variance (Cochran, Sampling Techniques, 1977, section 6.4): small, as the heavy weights are on one
// side.
bool locate(const Row& row, float top, float cap, Bracket& bracket, Scratch& scratch) {
  double above = 0.0;
  for (int64_t i = 0; i < kFewCandidates; ++i)
    if (scratch.stripes[i] > cap) above += weight_of(row, top, scratch.stripes[i]);
  // A look at a few tells what most rows are: peaked, with the border far above.
  const int64_t stride = row.size / kSample, long_stride = kRough * stride;
  double rough = 0.0;
  for (int64_t i = long_stride / 2; i < row.size; i += long_stride)
    if (row.logits[i] <= cap) rough += weight_of(row, top, row.logits[i]);
  if (above >= row.top_p * (above + rough * long_stride)) return false;
  std::vector<float>& sample = scratch.sample;
  sample.clear();
  float lowest = cap;
  for (int64_t i = stride / 2; i < row.size; i += stride) {
    const float logit = row.logits[i];
    if (logit > cap || logit == kNoLimit) continue;
    sample.push_back(logit);
    lowest = std::min(lowest, logit);
  }
  // Logits more than 30 temperatures below the cap weigh nothing that a sample could show.
  const float depth = std::min(cap - lowest, static_cast<float>(30.0 / row.inverse_temperature));
  if (!(depth > 0.0f)) return false;
  const float scale = static_cast<float>(kBuckets - 1) / depth, factor = static_cast<float>(row.inverse_temperature);
  scratch.masses.assign(kBuckets, 0.0);
  scratch.squares.assign(kBuckets, 0.0);
  sample.resize((sample.size() + kLanes - 1) / kLanes * kLanes, kNoLimit);
  double mass = 0.0, squares = 0.0;
  for (size_t i = 0; i < sample.size(); i += kLanes) {
    const Vec x = load(sample.data() + i);
    const Vec weights = exponential((x - top) * factor);
    const Vec places = (cap - x) * scale;
    const VecInt buckets = __builtin_convertvector(
        places < static_cast<float>(kBuckets - 1) ? places : splat(kBuckets - 1), VecInt);
    for (int lane = 0; lane < kLanes; ++lane) {
      const double weight = weights[lane];
      scratch.masses[buckets[lane]] += weight;
      scratch.squares[buckets[lane]] += weight * weight;
      mass += weight;
      squares += weight * weight;
    }
  }
  const double total = above + mass * stride;
  const double unsure = kSureness * stride / total;
  bracket = {kNoLimit, -kNoLimit};
  double running = 0.0, squared = 0.0;
  for (int64_t bucket = 0; bucket < kBuckets; ++bucket) {
    const double share = (above + running * stride) / total;
    const double error = unsure * std::sqrt(squared * (1 - share) * (1 - share) + (squares - squared) * share * share);
    if (share + error < row.top_p) bracket.high = cap - static_cast<float>(bucket) / scale;
    if (share - error > row.top_p) {
      bracket.low = cap - static_cast<float>(bucket + 1) / scale;
      break;
    }
    running += scratch.masses[bucket];
    squared += scratch.squares[bucket];
  }
  return bracket.high <= cap;
}

// Finds the border of top-p in a bracket, and the sums by segment of what it keeps, whose total it returns; 0 when the
// border is not there, or not sure to be.
double settle(const Row& row, float top, const Bracket& bracket, Kept& kept, Scratch& scratch) {
  scratch.segments.resize(num_segments(row));
  const float factor = static_cast<float>(row.inverse_temperature);
  scratch.logits.resize(row.size + 2 * kLanes);
  scratch.weights.resize(row.size + 2 * kLanes);
  scratch.ids.resize(row.size + 2 * kLanes);
  float* logits = scratch.logits.data();
  float* weights = scratch.weights.data();
  int32_t* ids = scratch.ids.data();
  VecInt lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  int64_t count = 0;
  double above = 0.0, total = 0.0;
  for (int64_t start = 0; start < row.size; start += kSegment) {
    const int64_t end = std::min(row.size, start + kSegment);
    Vec sums = Vec{}, all = Vec{};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec x = load(row.logits + i);
      const VecInt is_above = x > bracket.high;
      const Vec weight = exponential((x - top) * factor);
      all += weight;
      sums += is_above ? weight : Vec{};
      const VecInt is_between = (x >= bracket.low) & ~is_above;
      const VecInt at = lanes + static_cast<int32_t>(i);
      pack(is_between, reinterpret_cast<Vec>(at), reinterpret_cast<float*>(ids + count));
      pack(is_between, weight, weights + count);
      count += pack(is_between, x, logits + count);
    }
    double part = sum(sums);
    total += sum(all);
    for (; i < end; ++i) {
      const float weight = weight_of(row, top, row.logits[i]);
      total += weight;
      if (row.logits[i] > bracket.high) {
        part += weight;
      } else if (row.logits[i] >= bracket.low) {
        ids[count] = static_cast<int32_t>(i), weights[count] = weight, logits[count] = row.logits[i];
        ++count;
      }
    }
    scratch.segments[start / kSegment] = part;
    above += part;
  }
  const double goal = row.top_p * total;
  if (count == 0 || above >= goal) return 0.0;
  // Narrow buckets, of which only the one where the border lies is sorted.
  for (int64_t i = count; i < count + kLanes; ++i) logits[i] = kNoLimit, weights[i] = 0.0f, ids[i] = 0;
  Vec highs = splat(kNoLimit), lows = splat(-kNoLimit);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = load(logits + i);
    highs = maximum(x, highs);
    lows = x > kNoLimit ? -maximum(-x, -lows) : lows;
  }
  const float highest = largest(highs), lowest = -largest(-lows);
  const float scale = highest > lowest ? static_cast<float>(kBuckets - 1) / (highest - lowest) : 0.0f;
  scratch.places.resize(row.size + 2 * kLanes);
  int32_t* places = scratch.places.data();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = load(logits + i);
    const Vec place = x > kNoLimit ? (highest - x) * scale : splat(kBuckets - 1);
    const Vec bounded = place < static_cast<float>(kBuckets - 1) ? place : splat(kBuckets - 1);
    const VecInt bucket = __builtin_convertvector(bounded, VecInt);
    std::memcpy(places + i, &bucket, sizeof bucket);
  }
  // Four histograms, so that neighbours which fall into one bucket need not wait for each other.
  scratch.masses.assign(4 * kBuckets, 0.0);
  double* masses = scratch.masses.data();
  for (int64_t i = 0; i < count; i += 4)
    for (int64_t other = 0; other < 4; ++other) masses[other * kBuckets + places[i + other]] += weights[i + other];
  int32_t border = 0;
  for (; border + 1 < kBuckets; ++border) {
    const double here = (masses[border] + masses[kBuckets + border]) +
                        (masses[2 * kBuckets + border] + masses[3 * kBuckets + border]);
    if (above + here >= goal) break;
    above += here;
  }
  std::vector<Candidate>& inside = scratch.candidates;
  inside.clear();
  for (int64_t i = 0; i < count; i += kLanes) {
    VecInt bucket;
    std::memcpy(&bucket, places + i, sizeof bucket);
    const VecInt is_inside = bucket == border;
    if (any(is_inside))
      for_set(is_inside, [&](int64_t lane) {
        if (i + lane < count) inside.push_back({logits[i + lane], ids[i + lane]});
      });
  }
  std::sort(inside.begin(), inside.end());
  size_t last = 0;
  for (; last < inside.size(); ++last) {
    above += weight_of(row, top, inside[last].logit);
    if (above >= goal) break;
  }
  if (last == inside.size()) {
    // All of it does not reach: a rounding where nothing lies below, else the border is there.
    if (bracket.low > kNoLimit || inside.empty()) return 0.0;
    --last;
  }
  kept = {inside[last].logit, inside[last].id};
  // Four sums for each segment, for the same reason.
  const int64_t segments = num_segments(row);
  scratch.masses.assign(4 * segments, 0.0);
  masses = scratch.masses.data();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = load(logits + i);
    VecInt at;
    std::memcpy(&at, ids + i, sizeof at);
    const VecInt is_kept = (x > kept.border) | ((x == kept.border) & (at <= static_cast<int32_t>(kept.last)));
    store(weights + i, is_kept ? load(weights + i) : Vec{});
  }
  for (int64_t i = 0; i < count; i += 4)
    for (int64_t other = 0; other < 4; ++other)
      masses[4 * (ids[i + other] / kSegment) + other] += weights[i + other];
  double mass = 0.0;
  for (int64_t segment = 0; segment < segments; ++segment) {
    const double* four = masses + 4 * segment;
    scratch.segments[segment] += (four[0] + four[1]) + (four[2] + four[3]);
    mass += scratch.segments[segment];
  }
  return mass;
}

// Draws from what `settle` left, and min-p of that.
int64_t draw_settled(const Row& row, float top, Kept kept, double mass, Scratch& scratch) {
  if (row.min_p > 0.0) {
    const float least = least_of_min_p(row, top);
    if (least > kept.border) {
      kept = {least};
      mass = weigh<false>(row, top, least, 0.0f, scratch);
    }
  }
  return draw_all(row, top, kept, mass, scratch);
}

int64_t draw_top_p(const Row& row, float top, Scratch& scratch) {
  const float bound = bound_of(row, kFewCandidates, scratch);
  Kept kept;
  Bracket bracket;
  if (row.size >= 4 * kSample && locate(row, top, bound, bracket, scratch)) {
    const double mass = settle(row, top, bracket, kept, scratch);
    if (mass > 0.0) return draw_settled(row, top, kept, mass, scratch);
  }
  const double total = weigh<true>(row, top, kNoLimit, bound, scratch);
  rank(kFewCandidates, scratch.candidates);
  const float cap = scratch.candidates.back().logit;
  if (cut(row, top, total, scratch.candidates)) return draw_from(scratch.candidates, row, top);
  double mass = settle(row, top, {kNoLimit, cap}, kept, scratch);
  if (mass <= 0.0) {  // the sums of the two ways differ by a rounding: the border is at the cap
    kept = {cap};
    mass = weigh<false>(row, top, cap, 0.0f, scratch);
  }
  return draw_settled(row, top, kept, mass, scratch);
}

int64_t sample_row(const Row& row, Scratch& scratch) {
  const float top = scan(row, scratch);
  if (!std::isfinite(top)) return -1;
  if (row.inverse_temperature <= 0.0) return first_at(row.logits, row.size, top);
  const bool has_k = row.top_k > 0 && row.top_k < row.size;
  if (has_k) {
    collect(row, bound_of(row, row.top_k, scratch), scratch.candidates);
    rank(row.top_k, scratch.candidates);
    cut(row, top, std::numeric_limits<double>::infinity(), scratch.candidates);
    return draw_from(scratch.candidates, row, top);
  }
  if (row.top_p < 1.0) return draw_top_p(row, top, scratch);
  const Kept kept{row.min_p > 0.0 ? least_of_min_p(row, top) : kNoLimit};
  return draw_all(row, top, kept, weigh<false>(row, top, kept.border, 0.0f, scratch), scratch);
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
    const float top = vorta::scan(row, scratch);
    const float bound = top_n > 0 ? vorta::bound_of(row, top_n, scratch) : -vorta::kNoLimit;
    normalisers[i] = top + std::log(vorta::weigh<true>(row, top, vorta::kNoLimit, bound, scratch));
    if (top_n > 0) {
      vorta::rank(top_n, scratch.candidates);
      for (int64_t n = 0; n < top_n; ++n) top_ids[i * top_n + n] = scratch.candidates[n].id;
    }
  });
}
