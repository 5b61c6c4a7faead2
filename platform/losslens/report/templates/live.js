// The live page: asks for the state every other second, and for the studies' numbers when there are new ones.

const EVERY_MS = 2000, MOST_PANELS = 30;
const at = (id) => document.getElementById(id);
const state = { axis: 0, range: "fitted", progress: "tokens", by: 0, x: "tokens", find: "", study: null, hidden: new Set() };
let studies = [], version = null, last = null;

const SECOND = 1, MINUTE = 60, HOUR = 3600, DAY = 86400;
const STEPS = [1, 2, 5, 10, 15, 30].map((n) => n * SECOND).concat([1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), [1, 2, 3, 6, 12].map((n) => n * HOUR), [1, 2, 7].map((n) => n * DAY));

function clock(seconds, step) {
  const date = new Date(seconds * 1000);
  if (step >= DAY) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...(step < MINUTE ? { second: "2-digit" } : {}) });
}

function timeAxis(low, high, width) {
  if (high - low < 10) high = low + 10;
  const step = STEPS.find((s) => (high - low) / s <= width / 75) ?? Math.ceil((high - low) / (width / 75) / DAY) * DAY;
  const shift = new Date(low * 1000).getTimezoneOffset() * MINUTE;
  const ticks = [];
  for (let tick = Math.ceil((low - shift) / step) * step + shift; tick <= high; tick += step) ticks.push(tick);
  return { low, high, label: "time", ticks, format: (t) => clock(t, step) };
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 2 * HOUR) return `${Math.round(seconds / MINUTE)} min`;
  return seconds < 2 * DAY ? `${(seconds / HOUR).toFixed(1)} h` : `${Math.round(seconds / DAY)} days`;
}

const inStudy = () => studies.find((study) => study.name === state.study) ?? studies[0];
const visible = (study, run) => !state.hidden.has(slotOf(study, state, run));

function put(figure, chart, text) {
  if (!chart) return figure.replaceChildren();
  if (figure.matches(":focus-within") || figure.querySelector(".focus")) return; // a reader is in it
  figure.innerHTML = chart.html;
  makeReadable(figure, chart.points, text);
}

const nameOf = ({ groups: [{ names, of }] }, run) => names[of[run]];
const size = (figure, height) => [Math.max(240, Math.round(figure.clientWidth || 560)), height];
const named = (study, run, lines) => `<b class="s${slotOf(study, state, run)}">${escapeText(study.sizes[study.runs[run].size].name)}</b> ${escapeText(study.runs[run].id)}<br>${lines.map(escapeText).join("<br>")}`;

function lossFigure(study, figure) {
  const points = study.training.filter(([run, tokens]) => tokens > 0 && visible(study, run));
  if (!points.length) return put(figure, null);
  const [width, height] = size(figure, 290);
  const [first, final] = extent(points.map((p) => p[1])), [low, high] = padded(extent(points.map((p) => p[2])), 0.05);
  const x = { ...X_AXES.tokens, low: first / 1.1, high: final * 1.1, ticks: logTicks(first / 1.1, final * 1.1, width / 60) };
  const y = { low, high, label: "training loss, nats/token", ...roundTicks(low, high, 6) };
  const runs = study.runs.map((_, k) => ({ slot: slotOf(study, state, k), label: nameOf(study, k), points: [] }));
  points.forEach(([run, tokens, loss], i) => runs[run].points.push({ x: tokens, y: loss, i }));
  put(figure, drawChart({ width, height, x, y, runs: runs.filter((run) => run.points.length), labels: true, radius: 0, title: "Training loss against tokens. Arrow keys step through the points." }),
    (i) => named(study, points[i][0], [`training loss ${fixed(points[i][2])}`, `${countText(points[i][1])} tokens`]));
}

function worldFigure(study, figure) {
  const present = Date.parse(last.time) / 1000;
  const changes = study.runs.map((run, k) => [k, last.world[run.id] ?? []]).filter(([k, list]) => list.length && visible(study, k));
  if (!changes.length) return put(figure, null);
  const [width, height] = size(figure, 290);
  const still = (k) => last.runs.find((row) => row.run === study.runs[k].id)?.state === "training";
  const [low, latest] = extent(changes.flatMap(([, list]) => list.map(([time]) => time)));
  const high = changes.some(([k]) => still(k)) ? present : latest;
  const x = timeAxis(low, high, width), most = Math.max(1, ...changes.flatMap(([, list]) => list.map(([, n]) => n)));
  const y = { low: -0.06 * most, high: most * 1.1, label: "workers of each run", ticks: linearTicks(0, most, Math.min(most, 6)), format: String };
  const facts = [];
  const runs = changes.map(([k, list]) => ({
    slot: slotOf(study, state, k), label: nameOf(study, k), steps: true,
    points: [...list, ...(still(k) ? [[present, list.at(-1)[1]]] : [])].map(([time, n]) => { facts.push([k, time, n]); return { x: time, y: n, i: facts.length - 1 }; }),
  }));
  put(figure, drawChart({ width, height, x, y, runs, labels: true, radius: 2.4, title: "World size of each run over time. Arrow keys step through the changes." }),
    (i) => named(study, facts[i][0], [`${facts[i][2]} workers`, clock(facts[i][1], 1)]));
}

function queueFigure(study, figure) {
  const saved = study.saved.filter(([run]) => visible(study, run));
  if (!saved.length) return put(figure, null);
  const [width, height] = size(figure, 270);
  const times = [saved.map((row) => row[1]), saved.map((row) => row[2]).filter((t) => t != null)].map((list) => [...list].sort((a, b) => a - b));
  const waiting = saved.length - times[1].length;
  const [low, latest] = extent(times.flat());
  const high = waiting ? Date.parse(last.time) / 1000 : latest;
  const x = timeAxis(low, Math.max(high, latest), width), y = { low: 0, high: saved.length * 1.06, label: "checkpoints", ticks: linearTicks(0, saved.length, 5), format: String };
  const runs = ["saved", "scored"].map((label, slot) => ({
    slot: slot ? "scored" : "saved", label, steps: true, points: times[slot].map((t, i) => ({ x: t, y: i + 1, i: [label, i + 1, t] })),
  }));
  put(figure, drawChart({ width, height, x, y, runs, labels: true, radius: 0, title: "Checkpoints saved and scored over time. The height between the lines is the queue." }),
    ([label, count, t]) => escapeText(`${count} ${label} at ${clock(t, 1)}`));
}

function waitFigure(study, figure) {
  const scored = study.saved.filter(([run, saved, done]) => done != null && done >= saved && visible(study, run));
  if (!scored.length) return put(figure, null);
  const [width, height] = size(figure, 270);
  const waits = scored.map(([, saved, done]) => done - saved);
  const x = timeAxis(...extent(scored.map((row) => row[1])), width), high = Math.max(5, ...waits) * 1.06;
  const ticks = linearTicks(0, high, 5);
  const y = { low: 0, high, label: "from saved to scored", ticks, format: duration };
  x.label = "time when saved";
  const runs = study.runs.map((_, k) => ({ slot: slotOf(study, state, k), points: [] }));
  scored.forEach(([run, saved], i) => runs[run].points.push({ x: saved, y: waits[i], i }));
  const chart = drawChart({ width, height, x, y, runs, radius: 3, title: "How long each checkpoint waited for its last score. Arrow keys step through the checkpoints." });
  put(figure, { ...chart, html: chart.html.replace("<svg ", '<svg class="strip-chart" ') }, (i) => named(study, scored[i][0], [`scored after ${duration(waits[i])}`, `saved at ${clock(scored[i][1], 1)}`]));
}

function lagWords(study) {
  const open = study.saved.filter((row) => row[2] == null), waits = study.saved.filter((row) => row[2] != null).map((row) => row[2] - row[1]).sort((a, b) => a - b);
  if (!study.saved.length) return "No checkpoint has been saved yet.";
  const oldest = open.length ? `${open.length} of ${study.saved.length} checkpoints wait for a score, the oldest for ${duration(Date.parse(last.time) / 1000 - open[0][1])}.` : `All ${study.saved.length} checkpoints are scored.`;
  return waits.length ? `${oldest} Half of the scored ones were done within ${duration(waits[Math.floor(waits.length / 2)])} of being saved.` : oldest;
}

function scoreFigures(study) {
  const grid = at("panels"), wanted = study.panels.filter((panel) => panel.title.toLowerCase().includes(state.find.toLowerCase()));
  const shown = wanted.slice(0, MOST_PANELS);
  at("shown").textContent = !study.panels.length ? "No task has been scored yet." : wanted.length > shown.length ? `${shown.length} of ${wanted.length} tasks; find narrows them.` : "The metric of each task that the report shows first. Dashed: chance.";
  if (grid.dataset.of !== shown.map((panel) => panel.title).join("\n")) {
    grid.dataset.of = shown.map((panel) => panel.title).join("\n");
    grid.innerHTML = shown.map((panel) => `<div><h4>${escapeText(panel.title)}</h4><figure></figure></div>`).join("");
  }
  shown.forEach((panel, k) => {
    const curve = panel.curves[panel.default], figure = grid.children[k].querySelector("figure"), axis = study.axes[state.axis];
    const text = (i) => describe(study, state, i, [scoreLine(curve, i), `${axis.label}: ${fixed(axis.values[i])}`]);
    put(figure, panelChart(study, { ...state, fitted: false }, panel, curve, state.x, ...size(figure, 230)), text);
  });
}

function fillLegend(study) {
  const legend = document.querySelector(".legend");
  const { names, notes } = study.groups[0];
  if (legend.dataset.of === names.join("\n")) return;
  legend.dataset.of = names.join("\n");
  legend.innerHTML = names.map((name, slot) => `<button type="button" class="s${slot}" data-group="${slot}" aria-pressed="${!state.hidden.has(slot)}"><svg viewBox="-7 -7 14 14" aria-hidden="true"><path class="mark" d="${marker(slot, 0, 0, 4.5)}"/></svg>${escapeText(name)} <small>${notes[slot] ?? ""}</small></button>`).join("");
}

function draw() {
  const study = inStudy();
  if (!study) return;
  state.axis = study.axis;
  at("palette").textContent = study.style;
  fillLegend(study);
  at("lag").textContent = lagWords(study);
  lossFigure(study, at("loss"));
  worldFigure(study, at("world"));
  queueFigure(study, at("queue"));
  waitFigure(study, at("wait"));
  if (study.axes.length) scoreFigures(study);
}

function fillRows() {
  const cells = (row) => {
    const share = row.tokens_planned ? Math.min(1, row.tokens / row.tokens_planned) : 0;
    const bar = `<progress max="1" value="${share}"></progress> ${countText(row.tokens)}${row.tokens_planned ? ` of ${countText(row.tokens_planned)}` : ""}`;
    const numbers = [fixed(row.loss), row.tokens_per_second ? countText(row.tokens_per_second) : "–", row.world_size ?? "–", row.share ?? "–", row.attempt ?? "–", row.checkpoints, row.to_score];
    const badge = { training: "emergent", stopped: "inverse", waiting: "too_few" }[row.state] ?? "";
    return `<td>${escapeText(row.run)}</td><td><span class="badge ${badge}">${row.state}</span></td><td>${bar}</td>${numbers.map((n) => `<td class="n">${n}</td>`).join("")}<td>${escapeText(row.waits_for ?? row.slow ?? "–")}</td>`;
  };
  at("rows").innerHTML = last.runs.map((row) => `<tr>${cells(row)}</tr>`).join("");
}

function fillTiles() {
  const sum = (name) => last.runs.reduce((total, row) => total + (row[name] ?? 0), 0);
  const training = last.runs.filter((row) => row.state === "training"), planned = sum("tokens_planned");
  const pace = training.reduce((total, row) => total + (row.tokens_per_second ?? 0), 0);
  const tiles = [
    [`${training.length} of ${last.runs.length}`, "runs train"],
    [planned ? `${Math.floor((100 * sum("tokens")) / planned)} %` : "–", `of ${countText(planned)} tokens`],
    [pace ? countText(pace) : "–", "tokens a second"],
    [String(training.reduce((total, row) => total + (row.world_size ?? 0), 0)), "workers"],
    [String(sum("to_score")), "checkpoints to score"],
  ];
  at("tiles").innerHTML = tiles.map(([value, what]) => `<div><dt>${what}</dt><dd>${value}</dd></div>`).join("");
}

async function ask(what) {
  const answer = await fetch(what, { cache: "no-store" });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

async function look() {
  try {
    last = await ask("state");
    fillRows();
    fillTiles();
    at("cluster").textContent = last.headline;
    at("title").textContent = [...new Set(last.runs.map((row) => row.study))].join(", ") || "What runs";
    if (last.version !== version) {
      studies = await ask("studies");
      version = last.version;
      const select = document.querySelector("[data-choose=study]"), names = studies.map((study) => study.name);
      if (select.options.length !== names.length) select.innerHTML = names.map((name) => `<option>${escapeText(name)}</option>`).join("");
      at("which").hidden = names.length < 2;
    }
    at("state").textContent = `· ${clock(Date.parse(last.time) / 1000, 1)}`;
    draw();
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    at("state").textContent = error instanceof TypeError ? "· losslens does not answer any more" : `· ${error.message}`;
  }
  setTimeout(look, EVERY_MS);
}

addEventListener("click", (event) => {
  const button = event.target.closest("[data-group]");
  if (!button) return;
  const shown = state.hidden.delete(+button.dataset.group);
  if (!shown) state.hidden.add(+button.dataset.group);
  button.setAttribute("aria-pressed", shown);
  draw();
});
for (const kind of ["input", "change"]) {
  addEventListener(kind, (event) => {
    const choice = event.target.dataset.choose;
    if (!choice) return;
    state[choice] = event.target.value;
    if (choice === "study") state.hidden.clear();
    draw();
  });
}
let pending = 0;
addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(draw, 150); });
look();
