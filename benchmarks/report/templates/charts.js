"use strict";
// Figures come without colours: here they get the theme, the look of their methods, and the filter.

const data = JSON.parse(document.getElementById("data").textContent);
const narrow = matchMedia("(max-width: 640px)");
const touch = matchMedia("(hover: none)");
const root = document.documentElement;
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SCALES = {
  light: {
    level: ["#f4f8fd", "#c9ddf0", "#7fb2da", "#2f7fbc", "#0a3f7a"],
    change: ["#0072b2", "#86bbdb", "#f7f7f7", "#f0b183", "#d55e00"],
  },
  dark: {
    level: ["#18212f", "#1c3a5e", "#26588c", "#3b7dbd", "#a8d2fa"],
    change: ["#5aa9f0", "#335f88", "#1c2431", "#8a5233", "#ff8a4c"],
  },
};

const theme = () => root.dataset.theme;
const ink = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const scale = (name) => SCALES[theme()][name].map((colour, n, all) => [n / (all.length - 1), colour]);

/** A colour that is nearer to the ground, by a share of the way. */
function faded(colour, share) {
  const [from, to] = [colour, ink("--card")].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return "#" + from.map((part, n) => Math.round(part + share * (to[n] - part)).toString(16).padStart(2, "0")).join("");
}

/** Colour, marker and line of an entry; entries of one method differ in lightness, line and filling. */
function lookOf(number) {
  const entry = number === null ? null : data.entries[number];
  const method = entry && data.methods[entry.method];
  const reference = !method || method.colour < 0;
  const variant = entry ? entry.variant : 0;
  return {
    reference,
    colour: faded(reference ? data.palette.reference[theme()] : data.palette[theme()][method.colour], Math.min(0.28 * variant, 0.6)),
    symbol: method ? method.symbol + (variant % 2 && !reference ? "-open" : "") : "circle-open",
    dash: DASHES[(DASHES.indexOf(method ? method.dash : "dash") + variant) % DASHES.length],
  };
}

const DRESS = {
  line: (trace, look) => ({
    line: { color: look.colour, dash: look.dash, width: look.reference ? 1.6 : 2 },
    marker: { color: look.colour, symbol: look.symbol, size: 7 },
  }),
  band: (trace, look) => ({ fillcolor: look.colour + "16", line: { width: 0 } }),
  points: (trace, look) => ({
    line: { color: look.colour, dash: look.dash, width: 1.4 },
    marker: { size: 8, ...trace.marker, color: look.colour, symbol: look.symbol, opacity: 1 },
    error_y: { ...trace.error_y, color: look.colour, thickness: 1, width: 2 },
  }),
  point: (trace, look) => ({
    marker: { color: look.colour, symbol: look.symbol, size: 12, line: { width: look.reference ? 2 : 0 } },
    error_y: { ...trace.error_y, color: look.colour, thickness: 1, width: 3 },
    textfont: { color: ink("--text") },
    cliponaxis: false,
  }),
  pair: (trace, look) => ({
    line: { color: look.colour, width: 2 },
    marker: { color: look.colour, symbol: ["line-ns-open", look.symbol], size: [13, 11], opacity: 1, line: { width: 2, color: look.colour } },
    error_x: { ...trace.error_x, color: look.colour, thickness: 1, width: 3 },
    cliponaxis: false,
  }),
  heat: () => ({ colorscale: scale(state.heat === "difference" ? "change" : "level") }),
  accuracy: () => ({ colorscale: scale("level"), zmin: 0, zmax: 100, colorbar: bar("%") }),
};

const bar = (title) => ({
  title: { text: title }, thickness: 10, len: 0.9, outlinewidth: 0, ticks: "", tickfont: { color: ink("--muted") },
});

function dressed(trace) {
  const { kind, entry } = trace.meta || {};
  const look = kind in DRESS ? DRESS[kind](trace, lookOf(entry === undefined ? null : entry)) : {};
  return { ...trace, ...look };
}

/** Axes, ground and type of the theme under a figure's own layout. */
function laidOut(layout) {
  const axis = (own = {}) => ({
    gridcolor: ink("--grid"), zerolinecolor: ink("--grid"), linecolor: ink("--rule"),
    tickfont: { size: narrow.matches ? 11 : 12, color: ink("--muted") }, automargin: true,
    zeroline: false, ...own,
    ...(own.title ? { title: { standoff: 12, font: { size: 13, color: ink("--muted") }, ...own.title } } : {}),
  });
  const shapes = (layout.shapes || []).map((shape) =>
    shape.type === "line"
      ? { ...shape, line: { color: ink("--muted"), width: 1, dash: "dot" } }
      : { ...shape, fillcolor: ink("--stripe") });
  return {
    ...layout,
    shapes,
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink("--text") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 16, t: 12, b: 40, pad: 2, ...layout.margin },
    hoverlabel: { bgcolor: ink("--card"), bordercolor: ink("--rule"), font: { color: ink("--text"), size: 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--muted"), activecolor: ink("--accent") },
    showlegend: false,
    dragmode: touch.matches ? false : "zoom",
  };
}

/** Error against the chosen cost, labels on the front alone, and the front itself. */
function withFront(figure) {
  const seconds = state.cost === "seconds";
  const traces = figure.data
    .filter((trace) => trace.meta.x[state.cost] !== null)
    .map((trace) => ({ ...trace, x: [trace.meta.x[state.cost]] }));
  let least = Infinity;
  const front = [...traces]
    .sort((a, b) => a.x[0] - b.x[0] || a.y[0] - b.y[0])
    .filter((trace) => trace.y[0] < least && (least = trace.y[0], true));
  const line = {
    type: "scatter", mode: "lines", x: front.map((t) => t.x[0]), y: front.map((t) => t.y[0]), hoverinfo: "skip",
    line: { color: ink("--muted"), width: 1.2, dash: "dot", shape: "hv" },
  };
  const named = traces.map((trace) => (front.includes(trace) ? trace : { ...trace, mode: "markers" }));
  const title = seconds ? "seconds per 1,000 images" : "forwards + backwards per image";
  const xaxis = { ...figure.layout.xaxis, title: { text: title } };
  return { ...figure, data: [line, ...named], layout: { ...figure.layout, xaxis } };
}

/** Lines of the shown entries; error, or its difference to the source model's. */
function heatRows(figure) {
  const [trace] = figure.data;
  const change = state.heat === "difference" && trace.meta.difference;
  const rows = trace.meta.entries.map((entry, n) => n).filter((n) => shown(trace.meta.entries[n]));
  const z = rows.map((n) => (change || trace.z)[n]);
  const most = Math.max(1, ...z.flat().map(Math.abs));
  const range = change ? { zmin: -most, zmax: most } : {};
  const made = { ...trace, ...range, z, y: rows.map((n) => trace.y[n]), colorbar: bar(change ? "Δ %" : "%") };
  const height = figure.layout.height - 30 * (trace.y.length - rows.length);
  return { ...figure, data: rows.length ? [made] : [], layout: { ...figure.layout, height } };
}

/** The figure that a chart's place shows now, filtered and dressed; or a sentence. */
function figureFor(name) {
  const learning = name === "curve" || name === "matrix";
  const group = data.groups[learning ? state.learning : state.group];
  if (!group) return { missing: "Nothing matches the filters." };
  let figure = group.charts[name];
  if (figure.entries) {
    figure = figure.entries.find((one) => one.entry === state.matrix) || { missing: "Nothing matches the filters." };
  }
  if (figure.missing) return figure;
  if (name === "heat") figure = heatRows(figure);
  else figure = { ...figure, data: figure.data.filter((trace) => !("entry" in trace.meta) || trace.meta.entry === null || shown(trace.meta.entry)) };
  if (name === "pareto") figure = withFront(figure);
  if (name === "retention") {
    const rows = figure.data.length;
    figure = { ...figure, layout: { ...figure.layout, height: 120 + 30 * rows } };
  }
  if (!figure.data.some((trace) => trace.meta && trace.meta.entry !== null)) return { missing: "Nothing matches the filters." };
  return { ...figure, data: figure.data.map(dressed), layout: laidOut(figure.layout) };
}

function draw(place) {
  const name = place.dataset.chart;
  const figure = figureFor(name);
  const note = document.querySelector(`[data-note="${name}"]`);
  if (note) { note.textContent = figure.note ? `${figure.note}.` : ""; note.hidden = !figure.note; }
  drawLegend(name);
  if (figure.missing) {
    Plotly.purge(place);
    place.className = "chart";
    place.innerHTML = place.style.height = "";
    const said = place.appendChild(document.createElement("p"));
    said.className = "missing";
    said.textContent = figure.missing;
    return;
  }
  if (!place.classList.contains("js-plotly-plot")) place.innerHTML = "";
  // A resized window asks the place for its size, not the figure.
  place.style.height = `${figure.layout.height}px`;
  place.style.minWidth = figure.width ? `min(${figure.width}px, ${figure.width / 8}rem)` : "";
  Plotly.react(place, figure.data, figure.layout, {
    // The page keeps to itself: no button sends a chart anywhere.
    displaylogo: false, showSendToCloud: false, responsive: true, displayModeBar: touch.matches ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "svg", filename: name },
  });
}
