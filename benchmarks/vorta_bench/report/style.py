"""The page's style sheet: light and dark, narrow screens, and paper."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #17171a; --muted: #5f5f68; --hair: #e2e2e6; --soft: #f1f1f3;
  --bf16: #2a6fd0; --fp8: #d9602b; --int4: #14966a; --other: #8a8a94; --good: #0a7a3d; --part: #946200; --bad: #b3261e;
  --warn: #7a1a10; --warn-page: #fde3df; --warn-edge: #d4402f; }
@media (prefers-color-scheme: dark) { :root { --page: #17171a; --ink: #ececf0; --muted: #a2a2ad; --hair: #34343b;
  --soft: #222227; --bf16: #5b9bf0; --fp8: #f08a55; --int4: #3dbf8f; --other: #85858f; --good: #4cc985; --part: #e0b04a;
  --bad: #ff8a80; --warn: #ffd9d3; --warn-page: #4a1d17; --warn-edge: #ff6f5e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--hair); }
h3 { font-size: 16px; margin: 26px 0 6px; }
.muted, small { color: var(--muted); } .muted { margin: 4px 0 10px; max-width: 80ch; }
.none { color: var(--muted); font-style: italic; }
.banner { margin: 18px 0; padding: 14px 18px; border: 2px solid var(--warn-edge); border-left-width: 10px;
  border-radius: 6px; background: var(--warn-page); color: var(--warn); }
.banner b { display: block; font-size: 18px; }
.wide { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--hair); }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
.n { text-align: right; } td.n { white-space: nowrap; }
td.n:last-child, th.n:last-child { padding-right: 2px; }
.nowrap { white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 4px 40px; }
.pair > * { min-width: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 18px 32px;
  margin: 14px 0; }
figure { margin: 0; min-width: 0; max-width: 560px; } figcaption { line-height: 1.35; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .tick, svg .label { fill: var(--muted); }
.grid { stroke: var(--hair); } .rule { stroke: var(--muted); stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.dashed { stroke-width: 1.5; stroke-dasharray: 5 4; }
.dot { stroke: var(--page); stroke-width: 1.5; } .dot.dashed { stroke-width: 1; }
.line.bf16 { stroke: var(--bf16); } .line.fp8 { stroke: var(--fp8); } .line.int4 { stroke: var(--int4); }
.dot.bf16, .bar.bf16 { fill: var(--bf16); } .dot.fp8, .bar.fp8 { fill: var(--fp8); }
.dot.int4, .bar.int4 { fill: var(--int4); } .bar.other { fill: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12.5px; color: var(--muted); padding-left: 58px; }
.key { display: inline-block; width: 18px; margin-right: 6px; vertical-align: middle; border-top: 3px solid; }
.key.dashed { border-top: 2px dashed; }
.key.bf16 { border-color: var(--bf16); } .key.fp8 { border-color: var(--fp8); } .key.int4 { border-color: var(--int4); }
.mark { display: inline-block; min-width: 4.6em; font-weight: 600; white-space: nowrap; }
.mark.reached { color: var(--good); } .mark.in-part { color: var(--part); } .mark.missed { color: var(--bad); }
.mark.not-run { color: var(--muted); font-weight: 400; }
.meter { display: inline-block; width: 60px; height: 7px; margin-left: 8px; border-radius: 2px; background: var(--soft);
  overflow: hidden; vertical-align: middle; } .meter i { display: block; height: 100%; background: var(--bf16); }
summary { cursor: pointer; color: var(--muted); margin: 8px 0; }
@media print { :root { color-scheme: light; } body { font-size: 11px; } main { max-width: none; padding: 0; }
  table { font-size: 10px; } section, figure, tr { break-inside: avoid; } section { break-inside: auto; }
  .plots { grid-template-columns: 1fr 1fr; } .wide { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
