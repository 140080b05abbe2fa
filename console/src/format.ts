/** Numbers for people. */

/** A count: 940, 12.3k, 4.1M. */
export function formatCount(value: number): string {
  for (const [size, suffix] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e4, "k"],
  ] as const) {
    if (Math.abs(value) >= size) {
      return `${formatNumber(value / (suffix === "k" ? 1e3 : size))}${suffix}`;
    }
  }
  return formatNumber(value);
}

/** A time given in seconds: 0.42 ms, 23 ms, 1.24 s. */
export function formatSeconds(seconds: number): string {
  if (seconds === 0) {
    return "0 ms";
  }
  return seconds < 1 ? `${formatNumber(seconds * 1e3)} ms` : `${formatNumber(seconds)} s`;
}

/** A size in binary units: 812 B, 41.2 MiB. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log2(bytes) / 10));
  return `${formatNumber(bytes / 1024 ** power)} ${units[power]}`;
}

/** A share from 0 to 1 in per cent. */
export function formatShare(share: number): string {
  return `${formatNumber(share * 100)} %`;
}

/** Three significant digits, and no trailing zeros. */
export function formatNumber(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return String(Number(value.toFixed(digits)));
}

/** How long ago, or since: 12 s, 4 min, 3 h, 2 d. */
export function formatAge(seconds: number): string {
  for (const [size, unit] of [
    [86_400, "d"],
    [3_600, "h"],
    [60, "min"],
  ] as const) {
    if (seconds >= size) {
      return `${Math.floor(seconds / size)} ${unit}`;
    }
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}
