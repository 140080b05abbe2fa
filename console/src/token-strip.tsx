/** The timing of an answer's tokens as a strip of bars. */

import { formatSeconds } from "./format";

/** Bars of a strip; longer answers put several tokens into one. */
const MAX_BARS = 160;

/** When tokens came: milliseconds since the request was sent, and how many at once. */
export interface Arrival {
  readonly atMs: number;
  readonly numTokens: number;
}

/** A bar for each token, as high as the time since the one before; the first is the time to the first token. */
export function TokenStrip({ arrivals }: { readonly arrivals: readonly Arrival[] }) {
  const [first, ...rest] = arrivals;
  if (first === undefined) {
    return null;
  }
  const gaps = tokenGaps(first, rest);
  const bars = merged(gaps);
  const sorted = [...gaps].sort((a, b) => a - b);
  const median = sorted[sorted.length >> 1] ?? 0;
  const slowest = sorted.at(-1) ?? 0;
  const scale = Math.max(sorted[Math.floor(sorted.length * 0.98)] ?? 0, median * 1.5, 0.1);
  const label =
    `Time to the first token ${formatSeconds(first.atMs / 1000)}; then ${gaps.length} tokens, ` +
    `median ${formatSeconds(median / 1000)} apart, at most ${formatSeconds(slowest / 1000)}`;
  return (
    <svg class="strip" role="img" aria-label={label} viewBox={`0 0 ${MAX_BARS} 20`} preserveAspectRatio="none">
      <rect class="strip-first" x="0" y="0" width="0.8" height="20">
        <title>first token after {formatSeconds(first.atMs / 1000)}</title>
      </rect>
      {bars.map((gap, place) => {
        const height = Math.max(1.5, Math.min(1, gap / scale) * 20);
        const isSlow = gap > scale;
        return (
          <rect
            key={place}
            class={isSlow ? "strip-bar strip-slow" : "strip-bar"}
            x={place + 1.1}
            y={20 - height}
            width="0.8"
            height={height}
          >
            <title>{formatSeconds(gap / 1000)}</title>
          </rect>
        );
      })}
    </svg>
  );
}

/** Milliseconds before each token after the first; tokens that came together share the time. */
function tokenGaps(first: Arrival, rest: readonly Arrival[]): number[] {
  const gaps: number[] = Array.from({ length: Math.max(0, first.numTokens - 1) }, () => 0);
  let before = first.atMs;
  for (const { atMs, numTokens } of rest) {
    for (let place = 0; place < numTokens; place += 1) {
      gaps.push((atMs - before) / numTokens);
    }
    before = atMs;
  }
  return gaps;
}

/** At most as many bars as fit, each the longest of the gaps that it stands for. */
function merged(gaps: readonly number[]): number[] {
  const size = Math.ceil(gaps.length / (MAX_BARS - 2));
  if (size <= 1) {
    return [...gaps];
  }
  return Array.from({ length: Math.ceil(gaps.length / size) }, (_, place) =>
    Math.max(...gaps.slice(place * size, (place + 1) * size)),
  );
}
