/** Live charts of the server's metrics. */

import { useState } from "preact/hooks";

import { formatCount, formatSeconds, formatShare } from "./format";
import { LineChart, type Series } from "./line-chart";
import { largest, modelsOf, quantile, rate, type Reading, total } from "./prometheus";
import type { Server } from "./server";

/** What quantiles look back over. */
const QUANTILE_WINDOW_MS = 30_000;
/** What rates look back over. */
const RATE_WINDOW_MS = 4_500;
/** What charts span: the shortest that the readings fill. */
const SPANS_S = [60, 120, 300] as const;

/** The view. */
export function Metrics({ server }: { readonly server: Server }) {
  const [chosen, setChosen] = useState("");
  const { readings } = server;
  const last = readings.at(-1);
  const model = chosen === "" ? undefined : chosen;
  const times = last === undefined ? [] : readings.map((reading) => (reading.timeMs - last.timeMs) / 1000);
  const spanS = SPANS_S.find((span) => span >= -(times[0] ?? 0)) ?? 300;
  const shared = { times, spanS };

  const each = (value: (reading: Reading, place: number) => number | undefined): (number | undefined)[] =>
    readings.map(value);
  const over = (windowMs: number, value: (before: Reading, now: Reading) => number | undefined) =>
    each((now, place) => {
      const before = readingBefore(readings, place, windowMs);
      return before === undefined ? undefined : value(before, now);
    });
  const rates = (name: string) => over(RATE_WINDOW_MS, (before, now) => rate(before, now, name, model));
  const totals = (name: string) => each((now) => total(now, name, model));
  const quantiles = (name: string): Series[] => {
    const values = (q: number) => over(QUANTILE_WINDOW_MS, (before, now) => quantile(q, before, now, name, model));
    return lines({ p50: values(0.5), p95: values(0.95) });
  };

  return (
    <div class="metrics">
      <div class="toolbar">
        <label class="inline">
          Model
          <select value={chosen} onChange={(event) => setChosen(event.currentTarget.value)}>
            <option value="">All models</option>
            {(last === undefined ? [] : modelsOf(last)).map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <span class="muted">
          <a href="/metrics">/metrics</a>, read every 2 s
        </span>
        {server.metricsProblem === undefined ? null : (
          <span class="problem" role="alert">
            {server.metricsProblem}
          </span>
        )}
      </div>
      <div class="charts">
        <LineChart
          {...shared}
          title="Throughput"
          note="tokens/s"
          format={formatCount}
          series={lines({
            generated: rates("vorta_generated_tokens_total"),
            prompt: rates("vorta_prompt_tokens_total"),
          })}
        />
        <LineChart
          {...shared}
          title="TTFT"
          note="first token, 30 s"
          format={formatSeconds}
          series={quantiles("vorta_ttft_seconds")}
        />
        <LineChart
          {...shared}
          title="TPOT"
          note="per token, 30 s"
          format={formatSeconds}
          series={quantiles("vorta_tpot_seconds")}
        />
        <LineChart
          {...shared}
          title="Requests"
          note="now"
          format={formatCount}
          least={3}
          series={lines({
            running: totals("vorta_running_requests"),
            queued: totals("vorta_waiting_requests"),
          })}
        />
        <LineChart
          {...shared}
          title="KV memory"
          note={model === undefined ? "fullest model" : "in use"}
          format={formatShare}
          least={0.03}
          series={lines({ used: each((now) => largest(now, "vorta_kv_use_ratio", model)) })}
        />
        <LineChart
          {...shared}
          title="Calls"
          note="ended a second"
          format={formatCount}
          least={0.3}
          series={lines({ RPCs: over(RATE_WINDOW_MS, (before, now) => rate(before, now, "vorta_rpc_calls_total")) })}
        />
      </div>
    </div>
  );
}

/** A chart's lines by their labels; the second has the second colour. */
function lines(values: Readonly<Record<string, Series["values"]>>): Series[] {
  return Object.entries(values).map(([label, line], place) => ({ label, color: place === 0 ? 1 : 2, values: line }));
}

/** The youngest reading that is at least so old, else the oldest one before; undefined for the first. */
function readingBefore(readings: readonly Reading[], place: number, windowMs: number): Reading | undefined {
  const now = readings[place]?.timeMs ?? 0;
  let found = readings[place - 1];
  for (let earlier = place - 1; earlier >= 0; earlier -= 1) {
    found = readings[earlier];
    if (found !== undefined && now - found.timeMs >= windowMs) {
      break;
    }
  }
  return found;
}
