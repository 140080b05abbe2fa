/** Prometheus' text format, and what is computed from it over time: rates and quantiles of histograms. */

/** One reading of all metrics: values by `name{labels}`, and each sample's parts. */
export interface Reading {
  /** When, in milliseconds of a steady clock. */
  readonly timeMs: number;
  readonly samples: readonly Sample[];
}

/** One line of the text. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** Parses the text; lines that are none of the format are left out. */
export function parseMetrics(text: string, timeMs: number): Reading {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    const parts = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$/.exec(line);
    if (parts === null) {
      continue;
    }
    const [, name = "", list = "", value = ""] = parts;
    const labels: Record<string, string> = {};
    for (const [, key = "", quoted = ""] of list.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = quoted.replace(/\\(.)/g, (_, escaped: string) => (escaped === "n" ? "\n" : escaped));
    }
    samples.push({ name, labels, value: value === "+Inf" ? Infinity : Number(value) });
  }
  return { timeMs, samples };
}

/** The sum of a metric over all models, or of one; undefined when the reading has none. */
export function total(reading: Reading, name: string, model?: string): number | undefined {
  let sum: number | undefined;
  for (const sample of reading.samples) {
    if (sample.name === name && (model === undefined || sample.labels["model"] === model)) {
      sum = (sum ?? 0) + sample.value;
    }
  }
  return sum;
}

/** The largest value of a metric over all models, or of one. */
export function largest(reading: Reading, name: string, model?: string): number | undefined {
  let found: number | undefined;
  for (const sample of reading.samples) {
    if (sample.name === name && (model === undefined || sample.labels["model"] === model)) {
      found = Math.max(found ?? -Infinity, sample.value);
    }
  }
  return found;
}

/** A counter's growth a second between two readings; one that went back began anew. */
export function rate(before: Reading, now: Reading, name: string, model?: string): number | undefined {
  const last = total(now, name, model);
  const seconds = (now.timeMs - before.timeMs) / 1000;
  if (last === undefined || seconds <= 0) {
    return undefined;
  }
  const first = total(before, name, model) ?? 0;
  return (last >= first ? last - first : last) / seconds;
}

/**
 * A quantile of what a histogram observed between two readings; undefined when it observed nothing.
 *
 * As Prometheus' histogram_quantile: linear within the bucket, and the highest bound for what lies above all.
 */
export function quantile(q: number, before: Reading, now: Reading, name: string, model?: string): number | undefined {
  const first = buckets(before, name, model);
  const last = buckets(now, name, model);
  const hasRestarted = [...last].some(([bound, count]) => count < (first.get(bound) ?? 0));
  const bounds = [...last.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => (last.get(bound) ?? 0) - (hasRestarted ? 0 : (first.get(bound) ?? 0)));
  const count = counts.at(-1) ?? 0;
  if (count <= 0) {
    return undefined;
  }
  const rank = q * count;
  const place = counts.findIndex((below) => below >= rank);
  const upper = bounds[place] ?? Infinity;
  const lower = place > 0 ? (bounds[place - 1] ?? 0) : 0;
  if (upper === Infinity) {
    return lower;
  }
  const below = place > 0 ? (counts[place - 1] ?? 0) : 0;
  const inside = (counts[place] ?? 0) - below;
  return inside <= 0 ? upper : lower + ((upper - lower) * (rank - below)) / inside;
}

/** The models that a reading tells of, by name. */
export function modelsOf(reading: Reading): string[] {
  const models = new Set(reading.samples.map((sample) => sample.labels["model"] ?? ""));
  models.delete("");
  return [...models].sort();
}

/** Cumulative counts by upper bound, summed over models. */
function buckets(reading: Reading, name: string, model?: string): Map<number, number> {
  const counts = new Map<number, number>();
  for (const sample of reading.samples) {
    if (sample.name === `${name}_bucket` && (model === undefined || sample.labels["model"] === model)) {
      const le = sample.labels["le"] ?? "";
      const bound = le === "+Inf" ? Infinity : Number(le);
      counts.set(bound, (counts.get(bound) ?? 0) + sample.value);
    }
  }
  return counts;
}
