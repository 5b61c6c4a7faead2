"use strict";
// Drawing: numbers in, SVG text out. Knows nothing of studies, tasks or the page.

const escapeText = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const fixed = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));

function countText(value) {
  if (value == null) return "–";
  for (const [factor, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= factor) return `${+(value / factor).toPrecision(3)}${letter}`;
  }
  return `${+value.toPrecision(4)}`;
}

function powerText(value) {
  if (!value) return value == null ? "–" : "0";
  const exponent = Math.floor(Math.log10(value) + 1e-9);
  const mantissa = +(value / 10 ** exponent).toPrecision(3);
  const raised = [...String(exponent)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("");
  return mantissa === 1 ? `10${raised}` : `${mantissa}×10${raised}`;
}

function linearTicks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function logTicks(low, high, wanted) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const inside = (mantissas, stride) => {
    const ticks = [];
    for (let e = first; e <= last; e += stride) for (const m of mantissas) ticks.push(m * 10 ** e);
    return ticks.filter((t) => t >= low * 0.9999 && t <= high * 1.0001);
  };
  for (const mantissas of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = inside(mantissas, 1);
    if (ticks.length <= wanted) return ticks.length > 1 ? ticks : linearTicks(low, high, wanted);
  }
  return inside([1], Math.ceil((last - first) / wanted));
}

// A scale maps [low, high] to pixels [from, to]; `reversed` puts high on the left.
function makeScale({ low, high, log, reversed }, from, to) {
  const f = log ? Math.log10 : (v) => v;
  const a = f(low), b = f(high);
  return (value) => {
    const share = (f(value) - a) / (b - a || 1);
    return from + (reversed ? 1 - share : share) * (to - from);
  };
}

const MARKERS = [
  (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
  (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (x, y, r) => `M${x},${y - 1.2 * r}l${1.2 * r},${2.1 * r}h${-2.4 * r}z`,
  (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${1.3 * r}l${-1.3 * r},${1.3 * r}l${-1.3 * r},${-1.3 * r}z`,
  (x, y, r) => `M${x},${y + 1.2 * r}l${1.2 * r},${-2.1 * r}h${-2.4 * r}z`,
  (x, y, r) => `M${x - 0.5 * r},${y - 1.3 * r}h${r}v${0.8 * r}h${0.8 * r}v${r}h${-0.8 * r}v${0.8 * r}h${-r}v${-0.8 * r}h${-0.8 * r}v${-r}h${0.8 * r}z`,
];
const marker = (slot, x, y, r) => MARKERS[slot % MARKERS.length](+x.toFixed(1), +y.toFixed(1), r);

const MOST_LABELS = 8; // more would cover the lines
const MARGIN = { left: 46, right: 12, top: 28, bottom: 46 };

// options: width, height, x {low, high, log, reversed, label, note, format, ticks}, y {same}, title, radius of marks,
// runs [{slot, label, steps, points [{x, y, e, low, high, i, shift}]}] with whiskers of e either way or
// from low to high, `shift` in pixels, `steps` for a line of stairs, `label` at its end;
// labels: whether to draw them; chance [low, high], band [eta, low, high], rug [{slot, x, text}], heads [{x, text}] above the plot, means [{slot, x, y, shift}].
// Gives {html, points [{x, y, i}]}.
function drawChart(options) {
  const { width, height, x, y } = options;
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const sx = makeScale(x, MARGIN.left, right), sy = makeScale(y, bottom, MARGIN.top);
  const parts = [frame(options, sx, sy, right, bottom)];
  if (options.band) parts.push(bandMarks(options, sx, right, bottom));
  if (options.chance?.every((c) => c >= y.low && c <= y.high)) parts.push(chanceMarks(options, sy, right));
  const points = [];
  for (const run of options.runs) {
    const placed = run.points.map((p) => ({ i: p.i, x: sx(p.x) + (p.shift || 0), y: sy(p.y), top: sy(p.high ?? p.y + (p.e || 0)), foot: sy(p.low ?? p.y - (p.e || 0)), e: p.e ?? p.high }));
    points.push(...placed);
    parts.push(runMarks(run, placed, options.radius));
  }
  for (const { slot, x: at, y: level, shift } of options.means || []) {
    parts.push(`<path class="mean s${slot}" d="M${(sx(at) + shift - 11).toFixed(1)},${sy(level).toFixed(1)}h22"/>`);
  }
  for (const { x: at, text } of options.heads || []) {
    parts.push(`<text class="head" x="${sx(at).toFixed(1)}" y="${MARGIN.top - 4}" text-anchor="middle">${escapeText(text)}</text>`);
  }
  for (const { slot, x: at, text } of options.rug || []) {
    if (at < x.low || at > x.high) continue;
    parts.push(`<path class="rug s${slot}" d="M${sx(at).toFixed(1)},${bottom + 1}l4.5,7h-9z"><title>${escapeText(text)}</title></path>`);
  }
  if (options.labels) parts.push(endLabels(options.runs, sx, sy, points, { left: MARGIN.left, right, top: MARGIN.top, bottom }));
  const svg = `<svg viewBox="0 0 ${width} ${height}" tabindex="0" role="img" aria-label="${escapeText(options.title)}">${parts.join("")}</svg>`;
  return { html: svg, points };
}

function frame({ width, height, x, y }, sx, sy, right, bottom) {
  const parts = [];
  for (const tick of y.ticks) {
    const at = sy(tick).toFixed(1);
    parts.push(`<path class="grid" d="M${MARGIN.left},${at}H${right}"/><text class="tick" x="${MARGIN.left - 7}" y="${at}" dy=".32em" text-anchor="end">${y.format(tick)}</text>`);
  }
  for (const tick of x.ticks) {
    const at = sx(tick).toFixed(1);
    parts.push(`<path class="grid" d="M${at},${MARGIN.top}V${bottom}"/><text class="tick" x="${at}" y="${bottom + 21}" text-anchor="middle">${x.format(tick)}</text>`);
  }
  if (x.note && (x.note.length + y.label.length) * 7 < width) parts.push(`<text class="tick" x="${right}" y="10" text-anchor="end">${escapeText(x.note)}</text>`);
  parts.push(`<path class="axis" d="M${MARGIN.left},${bottom}H${right}"/>`);
  parts.push(`<text class="label" x="${(MARGIN.left + right) / 2}" y="${height - 5}" text-anchor="middle">${escapeText(x.label)}</text>`);
  parts.push(`<text class="label" x="2" y="10">${escapeText(y.label)}</text>`);
  return parts.join("");
}

function bandMarks({ x, band: [eta, low, high] }, sx, right, bottom) {
  const clamp = (v) => Math.min(Math.max(sx(v), MARGIN.left), right);
  const at = sx(eta);
  if (at < MARGIN.left || at > right) return "";
  const [from, to] = [clamp(high ?? eta), clamp(low ?? eta)].sort((a, b) => a - b);
  const onLeft = from - MARGIN.left > 60;
  const text = `<text class="eta" x="${(onLeft ? from - 5 : to + 5).toFixed(1)}" y="${MARGIN.top + 12}" text-anchor="${onLeft ? "end" : "start"}">η ${fixed(eta)}</text>`;
  const box = `<rect class="band" x="${from.toFixed(1)}" y="${MARGIN.top}" width="${Math.max(to - from, 1).toFixed(1)}" height="${bottom - MARGIN.top}"/>`;
  return `${box}<path class="eta" d="M${at.toFixed(1)},${MARGIN.top}V${bottom}"/>${text}`;
}

function chanceMarks({ chance, x, y }, sy, right) {
  const [low, high] = chance.map(sy);
  const range = low - high > 1 ? `<rect class="chance" x="${MARGIN.left}" y="${high}" width="${right - MARGIN.left}" height="${low - high}"/>` : "";
  return `${range}<path class="chance" d="M${MARGIN.left},${high.toFixed(1)}H${right}"/>`;
}

function runMarks({ slot, steps }, placed, radius) {
  const line = placed.map((p, i) => `${!i ? "M" : steps ? `H${p.x.toFixed(1)}L` : "L"}${p.x.toFixed(1)},${p.y.toFixed(1)}`).join("");
  const whiskers = placed.filter((p) => p.e && p.foot - p.top > 2 * radius).map((p) => `M${p.x.toFixed(1)},${p.top.toFixed(1)}V${p.foot.toFixed(1)}`).join("");
  const marks = radius ? placed.map((p) => marker(slot, p.x, p.y, radius)).join("") : "";
  return `<g class="s${slot}${radius ? "" : " bare"}"><path class="line" d="${line}"/><path class="whisker" d="${whiskers}"/><path class="mark" d="${marks}"/></g>`;
}

// One label for all lines of a name, at the end of the one that goes furthest, where it covers fewest marks and no other label.
function endLabels(runs, sx, sy, points, plot) {
  const last = new Map();
  for (const { slot, label, points: own } of runs) {
    if (!label || !own.length) continue;
    const end = own[own.length - 1], x = sx(end.x);
    if (!last.has(label) || x > last.get(label).x) last.set(label, { slot, x, y: sy(end.y) });
  }
  if (last.size > MOST_LABELS) return "";
  const taken = [];
  return [...last].map(([text, { slot, x, y }]) => {
    const half = (text.length * 7.6) / 2; // bold, in the widest of the usual fonts
    const places = [[x + half + 7, y], [x, y - 12], [x - half, y - 12], [x - half - 7, y], [x, y + 13], [x - half, y + 13], [x - half - 7, y - 20], [x - half - 7, y + 20]];
    const boxes = places.map(([cx, cy]) => ({ cx, cy, left: cx - half, right: cx + half, top: cy - 7, bottom: cy + 7 }));
    const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const cost = (box) => {
      const outside = box.left < plot.left || box.right > plot.right + 10 || box.top < plot.top - 8 || box.bottom > plot.bottom;
      return (outside || taken.some((other) => meets(box, other)) ? 1e6 : 0)
        + points.filter((p) => p.x > box.left && p.x < box.right && p.y > box.top && p.y < box.bottom).length;
    };
    const best = boxes.map((box) => [cost(box), box]).reduce((a, b) => (b[0] < a[0] ? b : a));
    if (best[0] >= 1e6) return "";
    taken.push(best[1]);
    return `<text class="end s${slot}" x="${best[1].cx.toFixed(1)}" y="${best[1].cy.toFixed(1)}" dy=".35em" text-anchor="middle">${escapeText(text)}</text>`;
  }).join("");
}
