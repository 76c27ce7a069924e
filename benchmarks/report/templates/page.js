"use strict";
// State of the page, and what follows from it: which entries, rows and runs are shown.

const KINDS = ["method", "setting", "stream"];
const state = {
  text: [], off: { method: new Set(), setting: new Set(), stream: new Set() },
  group: undefined, learning: undefined, matrix: undefined, cost: "passes", heat: "error",
};
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

const kept = (thing) => KINDS.every((kind) => !state.off[kind].has(thing[kind]));
const found = (text) => state.text.every((word) => text.includes(word));
const shown = (number) => kept(data.entries[number]) && found(data.entries[number].text);
const numbers = (group) => data.entries.map((_, n) => n).filter((n) => data.entries[n].group === group);

// Charts are drawn when they come into view, and again when something changed since.
const stale = new Set(all(".chart"));
const visible = new Set();
const watcher = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (isIntersecting) visible.add(target); else visible.delete(target);
  }
  drawVisible();
}, { rootMargin: "300px 0px" });

function drawVisible() {
  for (const place of visible) if (stale.delete(place)) draw(place);
}

function redraw(names) {
  for (const place of all(".chart")) if (!names || names.includes(place.dataset.chart)) stale.add(place);
  drawVisible();
}

/** Buttons under a chart: look and name of each entry; a press leaves its method out everywhere. */
function drawLegend(name) {
  const box = document.querySelector(`[data-legend="${name}"]`);
  if (!box) return;
  const group = data.groups[name === "curve" ? state.learning : state.group];
  const figure = group && group.charts[name];
  const traces = (figure && figure.data) || [];
  const notes = new Map();
  for (const { meta } of traces) {
    for (const n of meta.entries || [meta.entry]) if (n !== null && n !== undefined) notes.set(n, meta.note || "");
  }
  box.replaceChildren(...(name === "heat" || name === "retention" ? [] : [...notes]).sort((a, b) => a[0] - b[0])
    .filter(([n]) => found(data.entries[n].text)).map(([n, note]) => {
      const entry = data.entries[n];
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chip";
      button.title = "leave this method out of the page, or take it in again";
      button.setAttribute("aria-pressed", String(!state.off.method.has(entry.method)));
      button.append(signOf(entry), entry.label);
      if (note) button.append(Object.assign(document.createElement("span"), { className: "quiet", textContent: note }));
      button.addEventListener("click", () => toggle("method", entry.method));
      return button;
    }));
}

function signOf(entry) {
  const { colour, sign } = data.methods[entry.method];
  const made = document.createElement("span");
  made.className = "sign";
  made.setAttribute("aria-hidden", "true");
  made.style.color = `var(--m${colour < 0 ? "r" : colour})`;
  made.style.opacity = 1 - Math.min(0.28 * entry.variant, 0.6);
  made.textContent = sign;
  return made;
}

function toggle(kind, value) {
  if (!state.off[kind].delete(value)) state.off[kind].add(value);
  apply();
}

/** Everything that follows from the filters. */
function apply() {
  for (const box of all(".chips")) {
    for (const chip of all(".chip", box)) {
      chip.setAttribute("aria-pressed", String(!state.off[box.dataset.kind].has(chip.dataset.value)));
    }
  }
  for (const row of all("tr[data-entry]")) row.hidden = !shown(Number(row.dataset.entry));
  for (const row of all("tr[data-failed]")) row.hidden = !kept(row.dataset) || !found(row.textContent.toLowerCase());
  for (const ranking of all(".ranking")) ranking.hidden = !numbers(Number(ranking.dataset.group)).some(shown);
  let runs = 0;
  for (const line of all(".run")) {
    const run = data.runs[line.dataset.run];
    line.hidden = !kept(data.entries[run.entry]) || !found(textOf(run));
    runs += !line.hidden;
  }
  const entries = data.entries.filter((_, n) => shown(n)).length;
  byId("count").textContent = `${entries} of ${data.entries.length} entries, ${runs} of ${data.runs.length} runs`;
  chooseGroups();
  redraw();
}

const textOf = (run) => run.text || (run.text = JSON.stringify([data.entries[run.entry].label, run.row, run.spec]).toLowerCase());

/** Rankings that the filters leave; one that is gone gives way to that with the most entries. */
function chooseGroups() {
  const open = (learning) => data.groups.map((_, n) => n).filter((n) => data.groups[n].learning === learning && numbers(n).some(shown));
  const adaptation = open(false), learning = open(true);
  if (!adaptation.includes(state.group)) {
    state.group = [...adaptation].sort((a, b) => numbers(b).filter(shown).length - numbers(a).filter(shown).length)[0];
  }
  if (!learning.includes(state.learning)) state.learning = learning[0];
  for (const select of all("[data-pick]")) {
    const here = select.closest("#learning") ? "learning" : "group";
    fill(select, (here === "learning" ? learning : adaptation).map((n) => [n, data.groups[n].label]), state[here]);
  }
  const matrices = numbers(state.learning).filter(shown);
  if (!matrices.includes(state.matrix)) state.matrix = matrices[0];
  if (byId("matrix")) fill(byId("matrix"), matrices.map((n) => [n, data.entries[n].label]), state.matrix);
  const heat = data.groups[state.group] && data.groups[state.group].charts.heat;
  for (const radio of all('[name="heat"][value="difference"]')) {
    radio.disabled = !heat || !heat.data[0].meta.difference;
    radio.parentElement.title = radio.disabled ? "this ranking has no run of the source model" : "";
    if (radio.disabled && radio.checked) { all('[name="heat"]')[0].checked = true; state.heat = "error"; }
  }
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value, false, value === chosen)));
}

/** Sort a table's rows by the column of a pressed heading; what is missing goes last. */
function sortBy(heading) {
  const table = heading.closest("table"), column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

/** A line for each run; row and spec are written when it is opened. */
function listRuns() {
  const at = Object.fromEntries(data.columns.map((name, n) => [name, n]));
  byId("run-list").replaceChildren(...data.runs.map((run, number) => {
    const line = document.createElement("details"), head = line.appendChild(document.createElement("summary"));
    const get = (name) => run.row[at[name]];
    line.className = "run";
    line.id = `run-${get("run_id").slice(0, 12)}`;
    line.dataset.run = number;
    const name = Object.assign(document.createElement("span"), { className: "name" });
    name.append(signOf(data.entries[run.entry]), data.entries[run.entry].label);
    const words = Object.assign(document.createElement("span"), { className: "quiet" });
    words.textContent = `${get("stream")} · ${get("setting")} · ${get("backbone")} · seed ${get("seed")}`;
    const value = Object.assign(document.createElement("span"), { className: "value" });
    value.textContent = get("error_pct") === null ? "" : `${get("error_pct").toFixed(2)} %`;
    const id = Object.assign(document.createElement("code"), { textContent: get("run_id").slice(0, 8) });
    head.append(name, words, value, id);
    line.addEventListener("toggle", () => { if (line.open && line.children.length === 1) line.append(bodyOf(run)); });
    return line;
  }));
}

function bodyOf(run) {
  const body = Object.assign(document.createElement("div"), { className: "body" });
  const left = body.appendChild(document.createElement("div")), right = body.appendChild(document.createElement("div"));
  const title = (text) => Object.assign(document.createElement("h4"), { textContent: text });
  const pairs = Object.assign(document.createElement("dl"), { className: "pairs" });
  data.columns.forEach((name, n) => {
    if (run.row[n] === null) return;
    const value = typeof run.row[n] === "object" ? JSON.stringify(run.row[n]) : String(run.row[n]);
    pairs.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
  });
  left.append(title("result.json"), pairs);
  const spec = run.spec ? JSON.stringify(run.spec, null, 2) : "No spec.json was found: the folder of this run is not here.";
  right.append(title(run.folder ? `spec.json in ${run.folder}` : "spec.json"), Object.assign(document.createElement("pre"), { textContent: spec }));
  return body;
}

/** A link to a run opens it. */
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches(".run")) { target.open = true; target.scrollIntoView(); }
}

function setTheme(name) {
  root.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  redraw();
}

function listen() {
  byId("text").addEventListener("input", (event) => {
    state.text = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    apply();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => {
    state.text = [];
    for (const kind of KINDS) state.off[kind].clear();
    apply();
  });
  for (const box of all(".chips")) {
    const kind = box.dataset.kind, values = all(".chip", box).map((chip) => chip.dataset.value);
    for (const chip of all(".chip", box)) chip.addEventListener("click", () => toggle(kind, chip.dataset.value));
    for (const button of all("[data-all]", box)) {
      button.addEventListener("click", () => { state.off[kind] = new Set(button.dataset.all === "1" ? [] : values); apply(); });
    }
  }
  for (const heading of all(".sortable thead th")) heading.firstElementChild.addEventListener("click", () => sortBy(heading));
  for (const select of all("[data-pick]")) {
    const here = select.closest("#learning") ? "learning" : "group";
    select.addEventListener("change", () => { state[here] = Number(select.value); chooseGroups(); redraw(); });
  }
  if (byId("matrix")) byId("matrix").addEventListener("change", (event) => { state.matrix = Number(event.target.value); redraw(["matrix"]); });
  for (const name of ["cost", "heat"]) {
    for (const radio of all(`[name="${name}"]`)) radio.addEventListener("change", () => { state[name] = radio.value; redraw(name === "cost" ? ["pareto"] : ["heat"]); });
  }
  byId("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  addEventListener("hashchange", openTarget);
  let before;
  addEventListener("beforeprint", () => { before = theme(); setTheme("light"); for (const place of stale) draw(place); stale.clear(); });
  addEventListener("afterprint", () => setTheme(before));
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const reader = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id).setAttribute("aria-current", "location");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const id of links.keys()) reader.observe(byId(id));
}

if (matchMedia("(max-width: 900px)").matches) byId("panel").open = false;
listRuns();
listen();
setTheme(theme());
apply();
for (const place of all(".chart")) watcher.observe(place);
openTarget();
