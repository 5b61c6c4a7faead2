// The page: choices and what they redraw. Figures near the window are drawn at once, the others when the browser is idle, all before
// printing.

const studies = JSON.parse(document.getElementById("data").textContent);
let printing = false;

// On screen a figure has its own pixels; on paper all are drawn for one page width and scale with it.
function put(figure, draw, text) {
  const grid = figure.closest(".charts");
  const third = grid.classList.contains("thirds"), alone = grid.classList.contains("one");
  const paper = alone ? [640, 260] : grid.classList.contains("halves") ? [400, 210] : third ? [290, 205] : [figure.dataset.x === "loss" ? 340 : 262, 225];
  const screen = [Math.max(220, Math.round(figure.clientWidth || 360)), alone ? 380 : third ? 235 : 280];
  const { html, points } = draw(...(printing ? paper : screen));
  figure.innerHTML = html;
  makeReadable(figure, points, text);
}

function drawPanel(study, state, article) {
  const panel = study.panels[+article.dataset.panel];
  const chosen = +article.querySelector("[data-choose=metric]").value;
  const curve = panel.curves[chosen];
  const found = curve.thresholds[state.axis];
  article.querySelector(".verdict").textContent = found ? found.text : "No threshold has been computed for this metric on this loss.";
  article.querySelector(".how").textContent = curve.how;
  const badge = article.querySelector(".badge");
  badge.className = `badge ${found ? found.verdict : "none"}`;
  badge.textContent = found ? found.verdict.replace("_", " ") : "not analysed";
  for (const line of article.querySelectorAll(".spread")) line.hidden = chosen !== panel.default || state.axis !== study.axis;
  const axis = study.axes[state.axis];
  const text = (i) => describe(study, state, i, [scoreLine(curve, i), `${axis.label}: ${fixed(axis.values[i])}`]);
  article.querySelector(".charts").classList.toggle("one", state.x !== "all");
  for (const figure of article.querySelectorAll("figure")) {
    figure.hidden = state.x !== "all" && state.x !== figure.dataset.x;
    if (!figure.hidden) put(figure, (width, height) => panelChart(study, state, panel, curve, figure.dataset.x, width, height), text);
  }
  const table = article.querySelector(".values");
  table.querySelector("table")?.remove();
  if (table.open) fillTable(study, state, curve, table);
}

function fillTable(study, state, curve, details) {
  const axis = study.axes[state.axis];
  const rows = study.run.map((run, i) => [study.runs[run].id, study.step[i] ?? "–", countText(study.tokens[i]), powerText(study.flops[i]), fixed(axis.values[i]), fixed(curve.values[i]), fixed(curve.stderr[i]), (Array.isArray(curve.n) ? curve.n[i] : curve.n) ?? "–"])
    .filter((_, i) => curve.values[i] != null);
  const cells = (row, tag) => `<tr>${row.map((c, i) => `<${tag}${i ? ' class="n"' : ""}>${escapeText(c)}</${tag}>`).join("")}</tr>`;
  const head = cells(["run", "step", "tokens", "FLOPs", axis.label, curve.metric, "standard error", "items"], "th");
  details.insertAdjacentHTML("beforeend", `<table><thead>${head}</thead><tbody>${rows.map((row) => cells(row, "td")).join("")}</tbody></table>`);
}

function drawLosses(study, state, section) {
  const unit = study.axes[state.axis].unit;
  const axes = study.axes.filter((axis) => axis.unit === unit);
  const grid = section.querySelector(".charts");
  if (grid.childElementCount !== axes.length) grid.innerHTML = axes.map(() => "<figure></figure>").join("");
  [...grid.children].forEach((figure, k) => put(figure, (width, height) => lossChart(study, state, axes[k], width, height),
    (i) => describe(study, state, i, [`${axes[k].label}: ${fixed(axes[k].values[i])}`])));
}

// One task under all its metrics, on the loss that is chosen.
function drawMetrics(study, state, section) {
  const panel = study.panels[+section.querySelector("[data-choose=task]").value];
  const grid = section.querySelector(".charts");
  section.querySelector(".of").textContent = panel.title;
  const together = { ...state, fitted: panel.curves.some((curve) => curve.thresholds[state.axis]?.eta) };
  grid.innerHTML = panel.curves.map(() => '<figure data-x="loss"></figure>').join("");
  panel.curves.forEach((curve, k) => put(grid.children[k], (width, height) => panelChart(study, together, panel, curve, "loss", width, height),
    (i) => describe(study, state, i, [scoreLine(curve, i), `${study.axes[state.axis].label}: ${fixed(study.axes[state.axis].values[i])}`])));
}

function drawTuned(study, state, section) {
  const { label, values, amounts } = study.tuning;
  section.querySelector(".key").innerHTML = amounts.map((amount, slot) => `<span class="s${slot}">${markOf(slot)}${amount ? countText(amount) : "untuned"}</span>`).join("");
  const grid = section.querySelector(".charts");
  if (!grid.childElementCount) grid.innerHTML = study.panels.map(() => "<figure></figure>").join("");
  study.panels.forEach((panel, k) => put(grid.children[k], (width, height) => tunedChart(study, state, panel, width, height),
    (i) => describe(study, state, i, [scoreLine(panel.curves[panel.default], i), `${label}: ${fixed(values[i])}`])));
}

function drawSeeds(study, state, figure) {
  const panel = study.panels[+figure.dataset.seeds];
  const { losses, runs } = panel.seeds;
  put(figure, (width, height) => seedChart(study, state, panel, width, height), ([k, i]) => {
    const [run, values, errors] = runs.filter(([run]) => !state.hidden.has(slotOf(study, state, run)))[k];
    const { id, size, seed } = study.runs[run];
    const lines = [`${panel.curves[panel.default].metric} ${fixed(values[i])} ± ${fixed(errors[i])}`, `at loss ${fixed(losses[i])}, seed ${seed}`];
    return `<b class="s${slotOf(study, state, run)}">${escapeText(study.sizes[size].name)}</b> ${escapeText(id)}<br>${lines.map(escapeText).join("<br>")}`;
  });
}

function drawSuccess(study, state, figure) {
  const panel = study.panels[+figure.dataset.success];
  put(figure, (width, height) => successChart(study, state, panel, width, height), ([place, i]) => {
    const { name, slot, at } = panel.seeds.groups[place];
    const [loss, , low, high, k, n, p] = at[i];
    const lines = [`${k} of ${n} seeds at loss ${fixed(loss)}`, `probability ${fixed(low, 2)} to ${fixed(high, 2)}`, p == null ? "" : `dip test p ${fixed(p)}`].filter(Boolean);
    return `<b class="s${slot}">${escapeText(name)}</b><br>${lines.map(escapeText).join("<br>")}`;
  });
}

const markOf = (slot) => `<svg viewBox="-7 -7 14 14" aria-hidden="true"><path class="mark" d="${marker(slot, 0, 0, 4.5)}"/></svg>`;

function fillLegend(study, state, legend, drawAll) {
  const { names, notes } = study.groups[state.by];
  legend.innerHTML = names.map((name, slot) => {
    const note = notes[slot] ? ` <small>${notes[slot]}</small>` : "";
    return `<button type="button" class="s${slot}" data-group="${slot}" aria-pressed="${!state.hidden.has(slot)}">${markOf(slot)}${escapeText(name)}${note}</button>`;
  }).join("");
  for (const button of legend.children) {
    button.addEventListener("click", () => {
      const slot = +button.dataset.group, shown = state.hidden.delete(slot);
      if (!shown) state.hidden.add(slot);
      button.setAttribute("aria-pressed", shown);
      drawAll();
    });
  }
}

function choosePanels(section, state) {
  const wanted = state.find.toLowerCase();
  for (const article of section.querySelectorAll(".panel")) {
    const fits = (state.format === "all" || article.dataset.format === state.format) && article.querySelector("h4").textContent.toLowerCase().includes(wanted);
    article.hidden = !fits;
  }
  const none = section.querySelector(".nothing");
  if (none) none.hidden = [...section.querySelectorAll(".panel")].some((article) => !article.hidden);
}

// What is drawn together: its element, how, and whether it must be drawn anew.
function blocksOf(section, study, state) {
  const found = [];
  const add = (element, draw) => { if (element) found.push({ element, draw: () => draw(study, state, element), stale: true, near: false }); };
  for (const article of section.querySelectorAll(".panel")) add(article, drawPanel);
  add(section.querySelector(".tuned"), drawTuned);
  for (const figure of section.querySelectorAll("[data-seeds]")) add(figure, drawSeeds);
  for (const figure of section.querySelectorAll("[data-success]")) add(figure, drawSuccess);
  add(section.querySelector(".metrics"), drawMetrics);
  add(section.querySelector(".losses"), drawLosses);
  return found;
}

const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(work, 30));

function wire(section) {
  const study = studies[+section.dataset.study];
  const state = { axis: study.axis, range: "fitted", progress: "tokens", by: 0, x: innerWidth < 620 ? "loss" : "all", format: "all", find: "", hidden: new Set() };
  if (!study.axes.length) return () => {};
  const blocks = blocksOf(section, study, state);
  const drawOne = (block) => { block.stale = false; block.draw(); };
  const lacking = () => blocks.filter((block) => block.stale && !block.element.hidden);
  let idle = 0;
  const drawRest = () => {
    const [next, ...more] = lacking();
    if (next) drawOne(next);
    idle = more.length ? whenIdle(drawRest) : 0;
    section.dataset.drawn = !idle;
  };
  const drawNear = () => {
    for (const block of lacking()) if (block.near || printing) drawOne(block);
    section.dataset.drawn = !lacking().length;
    if (!idle && lacking().length) idle = whenIdle(drawRest);
  };
  const drawAll = () => { blocks.forEach((block) => { block.stale = true; }); drawNear(); };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) blocks.find((block) => block.element === entry.target).near = entry.isIntersecting;
    drawNear();
  }, { rootMargin: "600px" });
  blocks.forEach((block) => watcher.observe(block.element));
  const redraw = (element) => { const block = blocks.find((b) => b.element === element); block.stale = true; drawNear(); };

  const legend = section.querySelector(".legend");
  fillLegend(study, state, legend, drawAll);
  section.addEventListener("input", (event) => {
    if (event.target.dataset.choose === "find") { state.find = event.target.value; choosePanels(section, state); drawNear(); }
  });
  section.addEventListener("change", (event) => {
    const choice = event.target.dataset.choose, value = event.target.value;
    if (choice === "metric") return redraw(event.target.closest(".panel"));
    if (choice === "task") return redraw(event.target.closest(".metrics"));
    if (!choice || choice === "find") return;
    state[choice] = choice === "axis" || choice === "by" ? +value : value;
    if (choice === "by") { state.hidden.clear(); fillLegend(study, state, legend, drawAll); }
    if (choice === "format") choosePanels(section, state);
    drawAll();
  });
  section.addEventListener("toggle", (event) => { if (event.target.matches(".values") && event.target.open) redraw(event.target.closest(".panel")); }, true);
  for (const option of section.querySelectorAll("[data-choose=x]")) option.checked = option.value === state.x;
  return drawAll;
}

const redraw = [...document.querySelectorAll(".study")].map(wire);
let width = innerWidth, pending = 0;
addEventListener("resize", () => {
  clearTimeout(pending);
  pending = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; redraw.forEach((draw) => draw()); } }, 150);
});
for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => { printing = value; redraw.forEach((draw) => draw()); });
}
document.documentElement.dataset.ready = "true";
