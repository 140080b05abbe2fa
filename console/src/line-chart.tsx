/** A line chart over time, as SVG. */

import { useLayoutEffect, useRef, useState } from "preact/hooks";

const HEIGHT = 172;
const MARGIN = { top: 8, right: 10, bottom: 18, left: 50 };

/** A line. */
export interface Series {
  readonly label: string;
  /** Which of the palette's colours, from 1. */
  readonly color: 1 | 2 | 3;
  /** One for each time; undefined where there is none. */
  readonly values: readonly (number | undefined)[];
}

/** What a chart shows. */
export interface ChartProps {
  readonly title: string;
  /** What the numbers are, in a few words. */
  readonly note: string;
  /** Seconds before now, oldest first; negative. */
  readonly times: readonly number[];
  /** Seconds that the chart spans. */
  readonly spanS: number;
  readonly series: readonly Series[];
  readonly format: (value: number) => string;
  /** Top of the axis at least. */
  readonly least?: number;
}

/** A chart with its latest values; the pointer shows those of another moment. */
export function LineChart(props: ChartProps) {
  const { title, note, times, spanS, series, format } = props;
  const frame = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(400);
  const [pointed, setPointed] = useState<number>();
  useLayoutEffect(() => {
    const element = frame.current;
    if (element === null) {
      return undefined;
    }
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const plotWidth = Math.max(10, width - MARGIN.left - MARGIN.right);
  const plotHeight = HEIGHT - MARGIN.top - MARGIN.bottom;
  const peak = Math.max(props.least ?? 0, ...series.flatMap(({ values }) => values.map((value) => value ?? 0)));
  const ticks = niceTicks(peak);
  const top = ticks.at(-1) ?? 1;
  const x = (time: number): number => MARGIN.left + plotWidth * (1 + time / spanS);
  const y = (value: number): number => MARGIN.top + plotHeight * (1 - value / top);
  const at = pointed ?? times.length - 1;
  const isEmpty = series.every(({ values }) => values.every((value) => value === undefined));

  const point = (event: PointerEvent): void => {
    const left = event.currentTarget instanceof Element ? event.currentTarget.getBoundingClientRect().left : 0;
    const time = ((event.clientX - left - MARGIN.left) / plotWidth - 1) * spanS;
    let nearest: number | undefined;
    times.forEach((candidate, place) => {
      if (nearest === undefined || Math.abs(candidate - time) < Math.abs((times[nearest] ?? 0) - time)) {
        nearest = place;
      }
    });
    setPointed(nearest);
  };

  return (
    <figure class="chart card">
      <figcaption>
        <span>
          <strong>{title}</strong> <span class="muted">{note}</span>
        </span>
        <span class="keys">
          {series.map(({ label, color, values }) => (
            <span key={label} class="key">
              <i class={`swatch color-${color}`} />
              {label} <b>{show(values[at], format)}</b>
            </span>
          ))}
        </span>
      </figcaption>
      <div ref={frame}>
        <svg
          role="img"
          aria-label={summary(props)}
          width={width}
          height={HEIGHT}
          onPointerMove={point}
          onPointerLeave={() => setPointed(undefined)}
        >
          {ticks.map((tick) => (
            <g key={tick}>
              <line class="grid" x1={MARGIN.left} x2={width - MARGIN.right} y1={y(tick)} y2={y(tick)} />
              <text class="tick" x={MARGIN.left - 7} y={y(tick) + 3.5} text-anchor="end">
                {format(tick)}
              </text>
            </g>
          ))}
          {(pointed === undefined ? [1, 0.5, 0] : []).map((share) => (
            <text
              key={share}
              class="tick"
              x={x(-spanS * share)}
              y={HEIGHT - 3}
              text-anchor={share === 1 ? "start" : share === 0 ? "end" : "middle"}
            >
              {share === 0 ? "now" : `−${spanS * share <= 60 ? `${spanS * share} s` : `${(spanS * share) / 60} min`}`}
            </text>
          ))}
          {series.map(({ label, color, values }) => (
            <path key={label} class={`line color-${color}`} d={path(times, values, x, y)} />
          ))}
          {isEmpty ? (
            <text class="tick" x={MARGIN.left + plotWidth / 2} y={MARGIN.top + plotHeight / 2} text-anchor="middle">
              {times.length === 0 ? "Waiting for the first readings" : "Nothing in this time"}
            </text>
          ) : null}
          {pointed === undefined ? null : (
            <g>
              <line
                class="cross"
                x1={x(times[pointed] ?? 0)}
                x2={x(times[pointed] ?? 0)}
                y1={MARGIN.top}
                y2={MARGIN.top + plotHeight}
              />
              {series.map(({ label, color, values }) => {
                const value = values[pointed];
                return value === undefined ? null : (
                  <circle key={label} class={`dot color-${color}`} cx={x(times[pointed] ?? 0)} cy={y(value)} r="3" />
                );
              })}
              <text class="tick" x={x(times[pointed] ?? 0)} y={HEIGHT - 3} text-anchor="middle">
                {`−${Math.round(-(times[pointed] ?? 0))} s`}
              </text>
            </g>
          )}
        </svg>
      </div>
    </figure>
  );
}

/** The line, broken where there is no value; a value between two gaps is a dot. */
function path(
  times: readonly number[],
  values: readonly (number | undefined)[],
  x: (time: number) => number,
  y: (value: number) => number,
): string {
  let d = "";
  let isOpen = false;
  times.forEach((time, place) => {
    const value = values[place];
    if (value === undefined) {
      isOpen = false;
      return;
    }
    const spot = `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    const isAlone = !isOpen && values[place + 1] === undefined;
    d += isAlone ? `M${spot}h0.1` : `${isOpen ? "L" : "M"}${spot}`;
    isOpen = true;
  });
  return d;
}

/** From 0 in three or four round steps to at least the peak. */
function niceTicks(peak: number): number[] {
  if (!(peak > 0)) {
    return [0, 1];
  }
  const rough = peak / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10) * power;
  const count = Math.ceil((peak / step) * 0.999);
  return Array.from({ length: count + 1 }, (_, place) => place * step);
}

function show(value: number | undefined, format: (value: number) => string): string {
  return value === undefined ? "–" : format(value);
}

function summary({ title, note, series, format }: ChartProps): string {
  const parts = series.map(({ label, values }) => {
    const known = values.filter((value) => value !== undefined);
    const most = known.length === 0 ? "–" : format(Math.max(...known));
    return `${label} ${show(values.at(-1), format)}, at most ${most}`;
  });
  return `${title}, ${note}: ${parts.join("; ")}`;
}
