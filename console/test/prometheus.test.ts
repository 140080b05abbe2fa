/** Rates and quantiles from Prometheus' text. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { modelsOf, parseMetrics, quantile, rate, total } from "../src/prometheus.ts";

/** A histogram of counts below 0.1, 0.2 and infinity. */
function histogram(counts: readonly [number, number, number], timeMs: number) {
  const bounds = ["0.1", "0.2", "+Inf"];
  const lines = bounds.map((le, place) => `h_bucket{le="${le}",model="m"} ${counts[place]}`);
  return parseMetrics(lines.join("\n"), timeMs);
}

describe("prometheus", () => {
  it("reads the text", () => {
    const reading = parseMetrics(
      '# HELP a_total Things.\n# TYPE a_total counter\na_total{model="x"} 1.5\na_total{model="y\\"z\\\\"} 2e3\nb 4 1700000000\nnot a line\n',
      7,
    );
    assert.equal(reading.samples.length, 3);
    assert.equal(total(reading, "a_total"), 2001.5);
    assert.equal(total(reading, "a_total", 'y"z\\'), 2000);
    assert.equal(total(reading, "b"), 4);
    assert.equal(total(reading, "c"), undefined);
    assert.deepEqual(modelsOf(reading), ["x", 'y"z\\']);
  });

  it("computes rates, also of a counter that began anew", () => {
    const at = (value: number, timeMs: number) => parseMetrics(`a_total{model="m"} ${value}`, timeMs);
    assert.equal(rate(at(10, 0), at(30, 4_000), "a_total"), 5);
    assert.equal(rate(at(10, 0), at(8, 4_000), "a_total"), 2);
    assert.equal(rate(at(10, 0), at(30, 4_000), "a_total", "other"), undefined);
    assert.equal(rate(at(10, 0), at(10, 0), "a_total"), undefined);
  });

  it("computes quantiles of what lies between two readings", () => {
    const before = histogram([100, 100, 100], 0);
    assert.equal(quantile(0.5, before, before, "h"), undefined);
    const now = histogram([104, 108, 108], 1);
    assert.ok(Math.abs((quantile(0.5, before, now, "h") ?? 0) - 0.1) < 1e-9);
    assert.ok(Math.abs((quantile(0.75, before, now, "h") ?? 0) - 0.15) < 1e-9);
    assert.equal(quantile(0.95, before, histogram([100, 100, 104], 1), "h"), 0.2);
    assert.ok(Math.abs((quantile(0.5, before, histogram([2, 2, 2], 1), "h") ?? 0) - 0.05) < 1e-9);
  });
});
