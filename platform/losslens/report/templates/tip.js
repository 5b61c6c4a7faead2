// Reading values off a figure, by mouse and by keys, and the theme.

const tip = document.getElementById("tip");
window.addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });

function showTip(svg, point, html) {
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  tip.innerHTML = html;
  tip.hidden = false;
  const left = box.left + point.x * scale, top = box.top + point.y * scale;
  tip.style.left = `${Math.max(4, Math.min(left + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${top - tip.offsetHeight - 10 < 4 ? top + 14 : top - tip.offsetHeight - 10}px`;
  svg.querySelector(".focus")?.remove();
  svg.insertAdjacentHTML("beforeend", `<circle class="focus" cx="${point.x.toFixed(1)}" cy="${point.y.toFixed(1)}" r="6"/>`);
}

function hideTip(svg) {
  tip.hidden = true;
  svg.querySelector(".focus")?.remove();
}

// Mouse: the nearest mark within 40 pixels. Keys: left and right step along the marks, escape leaves.
function makeReadable(figure, points, text) {
  const svg = figure.querySelector("svg");
  let current = -1;
  const show = (index) => { current = index; showTip(svg, points[index], text(points[index].i)); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, nearest = 40;
    points.forEach((p, i) => { const d = Math.hypot(p.x - x, p.y - y); if (d < nearest) [best, nearest] = [i, d]; });
    if (best < 0) hideTip(svg); else show(best);
  });
  svg.addEventListener("pointerleave", () => hideTip(svg));
  svg.addEventListener("blur", () => hideTip(svg));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hideTip(svg);
    if (!step || !points.length) return;
    event.preventDefault();
    show(current < 0 && step < 0 ? points.length - 1 : (current + step + points.length) % points.length);
  });
}

// What a mark of a checkpoint says. `lines` are about what the figure shows.
function describe(study, state, i, lines) {
  const run = study.runs[study.run[i]];
  const named = study.groups.map(({ by, names, of }) => (by === "size" ? "" : `${by} ${names[of[study.run[i]]]}`)).filter(Boolean);
  const facts = [`step ${study.step[i] ?? "–"}`, `${countText(study.tokens[i])} tokens`, `${powerText(study.flops[i])} FLOPs`];
  return `<b class="s${slotOf(study, state, study.run[i])}">${escapeText(study.sizes[run.size].name)}</b> ${escapeText(run.id)}<br>`
    + `${[...lines, ...named].map(escapeText).join("<br>")}<br><small>${facts.join(" · ")}</small>`;
}

const scoreLine = (curve, i) => {
  const items = Array.isArray(curve.n) ? curve.n[i] : curve.n;
  return `${curve.metric} ${fixed(curve.values[i])} ± ${fixed(curve.stderr[i])}${items == null ? "" : ` on ${items.toLocaleString("en")} items`}`;
};

const themeButton = document.getElementById("theme");
const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const sayTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
themeButton.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; sayTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", sayTheme);
sayTheme();
