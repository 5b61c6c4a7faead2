// Figures: what of a study goes into a chart.

const X_AXES = {
  tokens: { label: "training tokens (log)", format: countText, log: true },
  flops: { label: "training FLOPs (log)", format: powerText, log: true },
};

const extent = (values) => values.reduce(([low, high], v) => (v == null ? [low, high] : [Math.min(low, v), Math.max(high, v)]), [Infinity, -Infinity]);

function padded([low, high], share) {
  const margin = (high - low || Math.abs(high) || 1) * share;
  return [low - margin, high + margin];
}

function roundTicks(low, high, wanted) {
  const ticks = linearTicks(low, high, wanted);
  const digits = Math.max(0, ...ticks.map((t) => (String(t).split(".")[1] || "").length));
  return { ticks, format: (t) => fixed(t, digits) };
}

// The highest loss of a trained checkpoint: untrained models lie far above it. What is tuned was trained before.
const trainedLimit = (study, axis) => extent(study.axes[axis].values.filter((_, i) => study.tuning || study.tokens[i] !== 0))[1];

// The loss below which most of the page happens: every threshold and crossing on this axis, with room before them.
function lateLimit(study, axis) {
  const [lowest] = extent(study.axes[axis].values), highest = trainedLimit(study, axis);
  const marks = study.panels.flatMap((panel) => {
    const eta = panel.curves[panel.default].thresholds[axis]?.eta;
    return eta ? [...eta, ...(axis === study.axis ? panel.crossings.map((c) => c[1]) : [])] : [];
  });
  const first = extent(marks)[1];
  return Number.isFinite(first) ? Math.min(highest, lowest + 2 * (first - lowest)) : highest;
}

function lossAxis(study, state, emergent, width) {
  const axis = study.axes[state.axis];
  let [low, high] = extent(axis.values);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  const limit = emergent ? lateLimit(study, state.axis) : trainedLimit(study, state.axis);
  if (state.range === "fitted" && limit >= low) high = limit;
  [low, high] = padded([low, high], 0.03);
  const early = axis.values.filter((v) => v > high).length;
  return { low, high, reversed: true, values: axis.values, label: `${axis.label} (reversed)`, note: early ? `${early} earlier not drawn` : "", ...roundTicks(low, high, width / 60) };
}

function progressAxis(study, name, width) {
  const values = study[name].map((v) => (v > 0 ? v : null));
  let [low, high] = extent(values);
  if (!Number.isFinite(low)) [low, high] = [1, 10];
  if (low === high) [low, high] = [low / 2, high * 2];
  [low, high] = [low / 1.15, high * 1.15];
  return { ...X_AXES[name], low, high, values, ticks: logTicks(low, high, width / 52) };
}

function valueAxis(curve) {
  const errors = curve.values.map((v, i) => [v == null ? null : v - (curve.stderr[i] || 0), v == null ? null : v + (curve.stderr[i] || 0)]).flat();
  let [low, high] = extent(errors);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  const fraction = low > -0.2 && high < 1.2, span = high - low;
  const near = (curve.chance || []).filter((c) => fraction || (c > low - span && c < high + span)); // 8 bits/byte would dwarf the rest
  [low, high] = extent([low, high, ...near]);
  if (fraction && high - low < 0.2) high = Math.min(low + 0.2, Math.max(1, high)); // noise around chance must look like noise
  [low, high] = padded([fraction ? Math.max(low, 0) : low, fraction ? Math.min(high, 1) : high], 0.04);
  return { low, high, label: curve.metric + (curve.better === "lower" ? ", lower is better" : ""), ...roundTicks(low, high, 6) };
}

const slotOf = (study, state, run) => study.groups[state.by].of[run];

// Points of every shown run, in the order of training.
function runsOf(study, state, x, values, errors) {
  const { of, names } = study.groups[state.by];
  const runs = study.runs.map((_, k) => ({ slot: of[k], label: names.length > 1 ? names[of[k]] : "", points: [] }));
  values.forEach((value, i) => {
    const at = x.values[i];
    if (value == null || at == null || at < x.low || at > x.high) return;
    runs[study.run[i]].points.push({ x: at, y: value, e: errors?.[i], i });
  });
  return runs.filter((run) => run.points.length && !state.hidden.has(run.slot));
}

function rugOf(study, state, panel, column, format) {
  return panel.crossings.filter((c) => c[column] != null && !state.hidden.has(slotOf(study, state, c[0]))).map((c) => {
    return { slot: slotOf(study, state, c[0]), x: c[column], text: `${study.runs[c[0]].id} passes ${fixed(panel.level)} at ${format(c[column])}` };
  });
}

const markRadius = (runs, width) => {
  const count = runs.reduce((sum, run) => sum + run.points.length, 0);
  return (count > 400 ? 1.8 : count > 150 ? 2.4 : 3) + (width > 700 ? 0.8 : 0);
};

// `state.fitted` says for several figures beside each other whether their range is fitted.
function panelChart(study, state, panel, curve, name, width, height) {
  const found = curve.thresholds[state.axis];
  const x = name === "loss" ? lossAxis(study, state, state.fitted ?? found?.eta != null, width) : progressAxis(study, name, width);
  const headline = curve === panel.curves[panel.default];
  const column = { loss: 1, tokens: 2, flops: 3 }[name];
  const rug = state.fitted == null && headline && (name !== "loss" || state.axis === study.axis) ? rugOf(study, state, panel, column, name === "loss" ? fixed : x.format) : [];
  const runs = runsOf(study, state, x, curve.values, curve.stderr);
  return drawChart({
    width, height, x, y: valueAxis(curve), chance: curve.chance, rug, runs, radius: markRadius(runs, width),
    band: name === "loss" ? found?.eta : null, labels: name === "flops" || (name === "tokens" && state.x === "tokens"),
    title: `${panel.title}: ${curve.metric} against ${x.label}. Arrow keys step through the checkpoints.`,
  });
}

function lossChart(study, state, axis, width, height) {
  const x = progressAxis(study, state.progress, width);
  const [low, high] = padded(extent(axis.values.filter((_, i) => x.values[i] != null)), 0.05);
  const y = { low, high, label: axis.label, ...roundTicks(low, high, 6) };
  const runs = runsOf(study, state, x, axis.values);
  return drawChart({
    width, height, x, y, runs, labels: true, radius: Math.min(2.2, markRadius(runs, width)),
    title: `${axis.label} against ${x.label}. Arrow keys step through the checkpoints.`,
  });
}

// Scores after tuning at the loss that the parents had before it: a line joins one amount over the parents of one size.
function tunedChart(study, state, panel, width, height) {
  const { label, values, amounts } = study.tuning;
  const curve = panel.curves[panel.default];
  const lines = new Map();
  curve.values.forEach((value, i) => {
    const run = study.run[i], slot = amounts.indexOf(study.tokens[i]);
    if (value == null || values[i] == null || slot < 0 || state.hidden.has(slotOf(study, state, run))) return;
    const key = `${slot} ${study.runs[run].size}`;
    if (!lines.has(key)) lines.set(key, { slot, points: [] });
    lines.get(key).points.push({ x: values[i], y: value, e: curve.stderr[i], i });
  });
  const runs = [...lines.values()].sort((a, b) => a.slot - b.slot);
  for (const { points } of runs) points.sort((a, b) => b.x - a.x);
  const found = extent(runs.flatMap(({ points }) => points.map((p) => p.x)));
  const [low, high] = padded(Number.isFinite(found[0]) ? found : [0, 1], 0.03);
  const x = { low, high, reversed: true, label: `${label} (reversed)`, ...roundTicks(low, high, width / 60) };
  const y = { ...valueAxis(curve), label: `${panel.title}: ${curve.metric}` };
  const title = `${panel.title}: ${curve.metric} after tuning against the loss before. Arrow keys step through the checkpoints.`;
  return drawChart({ width, height, x, y, runs, chance: curve.chance, radius: markRadius(runs, width), title });
}

function seedAxis(study, losses) {
  const margin = ((losses[0] - losses.at(-1)) / Math.max(losses.length - 1, 1)) * 0.6;
  return { low: losses.at(-1) - margin, high: losses[0] + margin, reversed: true, label: `${study.axes[study.axis].label} (reversed)`, ticks: losses, format: (t) => fixed(t, 2) };
}

// Scores at equal loss, a column a loss: marks of one colour stand beside each other where they would hide each other.
function seedChart(study, state, panel, width, height) {
  const { losses, runs } = panel.seeds;
  const curve = panel.curves[panel.default];
  const shown = runs.filter(([run]) => !state.hidden.has(slotOf(study, state, run)));
  const slots = [...new Set(shown.map(([run]) => slotOf(study, state, run)))].sort((a, b) => a - b);
  const scores = shown.flatMap(([, values]) => values).filter((v) => v != null);
  let [low, high] = extent([...scores, ...(curve.chance || [])]);
  [low, high] = padded([low, high], 0.06);
  const column = Math.min(46, (width - 80) / losses.length);
  const step = slots.length > 1 ? column / slots.length : 0;
  const offset = (slot) => (slots.indexOf(slot) - (slots.length - 1) / 2) * step;
  const x = seedAxis(study, losses);
  const y = { low, high, label: curve.metric, ...roundTicks(low, high, 5) };
  const taken = new Map();
  const beside = (slot, i, value) => { // 0, 1, -1, 2, ... marks away from the middle of its column
    const key = `${slot} ${i} ${Math.round(((value - low) / (high - low)) * (height / 9))}`;
    const count = taken.get(key) || 0;
    taken.set(key, count + 1);
    return (count % 2 ? 1 : -1) * Math.ceil(count / 2) * 7;
  };
  const drawn = shown.map(([run, values], k) => ({
    slot: slotOf(study, state, run),
    points: values.flatMap((value, i) => (value == null ? [] : [{ x: losses[i], y: value, i: [k, i], shift: offset(slotOf(study, state, run)) + beside(slotOf(study, state, run), i, value) }])),
  }));
  const heads = losses.map((loss, i) => {
    const there = shown.filter(([, values]) => values[i] != null);
    return { x: loss, text: `${there.filter(([, , , above]) => above[i]).length}/${there.length}` };
  });
  const means = losses.flatMap((loss, i) => slots.flatMap((slot) => {
    const there = shown.filter(([run, values]) => slotOf(study, state, run) === slot && values[i] != null).map(([, values]) => values[i]);
    return there.length ? [{ slot, x: loss, y: there.reduce((a, b) => a + b) / there.length, shift: offset(slot) }] : [];
  }));
  const found = curve.thresholds[study.axis]?.eta;
  const title = `${panel.title}: ${curve.metric} of each seed at equal loss. Arrow keys step through the runs.`;
  const { html, points } = drawChart({ width, height, x, y, radius: 3.4, runs: drawn, chance: curve.chance, band: found, heads, means, title });
  return { html: html.replace("<svg ", '<svg class="strip-chart" '), points, shown };
}

// How many seeds of each size are beyond half of the best gain, with the interval of the probability behind it.
function successChart(study, state, panel, width, height) {
  const { losses, groups, level } = panel.seeds;
  const shown = groups.map((group, place) => ({ ...group, place })).filter(({ slot }) => study.groups[state.by].by !== "size" || !state.hidden.has(slot));
  const step = Math.min(7, (width - 80) / losses.length / (shown.length + 1));
  const runs = shown.map(({ slot, name, at, place }, k) => ({
    slot, label: groups.length > 1 ? name : "",
    points: at.map(([loss, share, low, high], i) => ({ x: loss, y: share, low, high, i: [place, i], shift: (k - (shown.length - 1) / 2) * step })),
  }));
  const y = { low: -0.04, high: 1.04, label: `share of seeds above ${fixed(level)}`, ticks: [0, 0.25, 0.5, 0.75, 1], format: (t) => fixed(t, 2) };
  const title = `${panel.title}: share of seeds above half of the best gain at equal loss. Arrow keys step through the losses.`;
  const band = panel.curves[panel.default].thresholds[study.axis]?.eta;
  return drawChart({ width, height, x: seedAxis(study, losses), y, radius: 3.4, runs, band, labels: true, title });
}
