// @ts-check
// The sweep report's script. `data` is that of `points.point_data` and the figures; all its texts are set as text.
const data = JSON.parse(byId("data").textContent);
const {names, columns, labels, axes} = data;
const metrics = Object.keys(labels);
const rows = columns.id.map((_, row) => row);
const has = name => row => columns[name][row] !== null;

// The value on a plot: guidance at 1 and below is switched off.
function plottedValue(name, row) {
  const value = columns[name][row];
  return name === "guidance" && value !== null ? Math.max(1, value) : value;
}

// Words

const digits = {minimumSignificantDigits: 3, maximumSignificantDigits: 3};
const number = value => value === null ? "–" : value.toLocaleString("en", digits).replace("-", "−");
const whole = value => value === null ? "–" : value.toLocaleString("en");
const guidance = value => value === null ? "–" : value <= 1 ? "1 (off)" : value.toFixed(1);
function settings(row) {
  const guided = columns.guidance[row] === null ? "" : `, guidance ${guidance(columns.guidance[row])}`;
  return `${columns.steps[row] ?? "?"} steps${guided}`;
}
const named = (name, row) => names[name][columns[name][row]] ?? null;
const promptOf = row => named("prompt", row) ?? "no prompt";
const words = row => `${promptOf(row)} (${settings(row)}, seed ${columns.seed[row] ?? "unknown"})`;
const sweepLabel = id => id === null ? "no sweep" : id.slice(0, 8);
const short = text => text.length > 40 ? `${text.slice(0, 39)}…` : text;
function deviation(metric, row) {
  const [mean, spread] = data.spread[named("engine", row)][metric];
  return columns[metric][row] === null || !spread ? null : (columns[metric][row] - mean) / spread;
}
const signed = value => value === null ? "–" : `${value < -0.05 ? "−" : value < 0.05 ? "±" : "+"}${Math.abs(value).toFixed(1)}`;

// Images, and the card that shows one of them with its settings and scores

function image(row) {
  const webp = data.pictures[row];
  if (webp === null) return make("span", {class: "absent", role: "img", "aria-label": words(row)}, "no image");
  return make("img", {src: `data:image/webp;base64,${webp}`, alt: words(row), decoding: "async"});
}
function picture(row, list) {
  const button = make("button", {type: "button", class: "picture", "data-row": row}, image(row));
  button.addEventListener("click", () => show(row, {list, pin: true, at: button}));
  return button;
}

const card = byId("card");
let shown = null, pinned = false, among = [], cardOpener = null, leaving = 0;
function show(row, {list = among, pin = false, at = null, anchor = at} = {}) {
  clearTimeout(leaving);
  [shown, among, pinned] = [row, list, pin || pinned];
  if (at) cardOpener = at;
  byId("card-picture").replaceChildren(image(row));
  byId("card-prompt").textContent = promptOf(row);
  const facts = [
    ["Engine", named("engine", row)], ["Run", named("run_id", row)], ["Steps", columns.steps[row]],
    ["Guidance", columns.guidance[row] === null ? null : guidance(columns.guidance[row])], ["Seed", columns.seed[row]],
    ["Seconds", columns.seconds[row] === null ? null : number(columns.seconds[row])], ["File", columns.path[row]],
  ];
  const known = facts.filter(([, value]) => value !== null);
  byId("card-facts").replaceChildren(...known.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, String(value))]));
  byId("card-scores").replaceChildren(...metrics.flatMap(metric => {
    const score = columns[metric][row], apart = make("small", {}, score === null ? "" : `${signed(deviation(metric, row))} SD`);
    return [make("dt", {}, labels[metric]), make("dd", {}, score === null ? "missing" : number(score), " ", apart)];
  }));
  const place = among.indexOf(row);
  byId("card-place").textContent = place < 0 ? "" : `${place + 1} of ${among.length}`;
  card.hidden = false;
  if (anchor) put(anchor.getBoundingClientRect());
}
// Next to its dot, whole in the window; on a phone the style puts it at the bottom.
function put({left, right, top, bottom}) {
  const {width, height} = card.getBoundingClientRect(), gap = 14;
  const across = left + right < innerWidth ? right + gap : left - gap - width;
  card.style.setProperty("--across", `${Math.min(Math.max(across, 8), innerWidth - width - 8)}px`);
  card.style.setProperty("--down", `${Math.min(Math.max((top + bottom - height) / 2, 8), innerHeight - height - 8)}px`);
}
function hide() {
  const inside = card.contains(document.activeElement);
  [card.hidden, pinned, shown] = [true, false, null];
  if (inside && cardOpener) cardOpener.focus();
}
function leave() { if (!pinned) leaving = setTimeout(hide, 400); }
function step(by) {
  if (among.length) show(among[(among.indexOf(shown) + by + among.length) % among.length], {pin: true});
}
card.addEventListener("mouseenter", () => clearTimeout(leaving));
card.addEventListener("mouseleave", leave);
byId("card-before").addEventListener("click", () => step(-1));
byId("card-after").addEventListener("click", () => step(1));
byId("card-close").addEventListener("click", hide);
document.addEventListener("keydown", event => { if (event.key === "Escape" && !card.hidden) hide(); });

// Filters

const hidden = {engine: new Set(), run_id: new Set()};
let filtered = rows, filled = false;
function filter() {
  const wanted = byId("prompt").value.trim().toLowerCase();
  const worded = names.prompt.map(prompt => prompt.toLowerCase().includes(wanted));
  const chosen = row => ["engine", "run_id"].every(name => !hidden[name].has(columns[name][row]));
  filtered = rows.filter(row => chosen(row) && (!wanted || worded[columns.prompt[row]]));
  byId("count").textContent = `${filtered.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} images`;
  byId("all").hidden = filtered.length === rows.length;
  for (const section of all("section[data-engine]")) {
    section.hidden = hidden.engine.has(names.engine.indexOf(section.dataset.engine));
  }
  redraw();
  if (filled) fill();
}
function fill() {
  filled = true;
  for (const list of [grids, extremes, pairs, table]) list();
}
function chooser(name, title, label) {
  const present = [...new Set(columns[name])].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
  if (present.length < 2) return [];
  const summary = make("summary"), boxes = make("fieldset", {}, make("legend", {class: "unseen"}, title));
  const summarize = () => {
    const chosen = hidden[name].size ? `${present.length - hidden[name].size} of` : "all";
    summary.textContent = `${title}: ${chosen} ${present.length}`;
  };
  for (const value of present) {
    const box = /** @type {HTMLInputElement} */ (make("input", {type: "checkbox", checked: ""})), text = value === null ? null : names[name][value];
    const count = columns[name].filter(each => each === value).length;
    box.addEventListener("input", () => { hidden[name][box.checked ? "delete" : "add"](value); summarize(); filter(); });
    boxes.append(make("label", {title: text ?? ""}, box, " ", label(text), " ", make("small", {}, whole(count))));
  }
  summarize();
  return [make("details", {class: "choose"}, summary, boxes)];
}
byId("choosers").append(...chooser("engine", "Engines", short), ...chooser("run_id", "Sweeps", sweepLabel));
byId("prompts").append(...names.prompt.slice(0, 200).map(prompt => make("option", {value: prompt})));
byId("prompt").addEventListener("input", filter);
byId("filters").addEventListener("submit", event => event.preventDefault());
byId("all").addEventListener("click", () => {
  byId("prompt").value = "";
  for (const box of byId("choosers").querySelectorAll("input:not(:checked)")) box.click();
  filter();
});
// The choosers lie over the page: a click elsewhere or Escape closes them.
const unfolded = () => all("details.choose[open]");
document.addEventListener("click", event => { for (const chosen of unfolded()) if (!chosen.contains(event.target)) chosen.open = false; });
document.addEventListener("keydown", event => { if (event.key === "Escape") for (const chosen of unfolded()) chosen.open = false; });

// Plots

const colours = ["#2f7fd0", "#d9653b", "#2e9d6a", "#a564cf", "#c79a1b", "#d0508f", "#3aa6b0", "#8a8a84"];
const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon"];
const scale = data.scale.map((colour, index) => [index / (data.scale.length - 1), colour]);
// Plotly reads a little HTML in names.
const inert = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function dots(x, y, chosen, marker) {
  return {
    type: "scatter", mode: "markers", showlegend: false, hovertemplate: "%{x:.3~g}, %{y:.4~g}<extra></extra>",
    x: chosen.map(row => plottedValue(x, row)), y: chosen.map(row => plottedValue(y, row)), customdata: chosen,
    marker: {size: 6, opacity: 0.7, ...marker},
  };
}
const byGuidance = (chosen, bar) => ({
  color: chosen.map(row => plottedValue("guidance", row) ?? 1), cmin: data.guidance[0], cmax: data.guidance[1], colorscale: scale,
  ...(bar ? {colorbar: {thickness: 10, outlinewidth: 0, title: {text: "Guidance"}}} : {}),
});
function engineDots({engine, x, y}) {
  const chosen = filtered.filter(row => named("engine", row) === engine && columns[x][row] !== null && columns[y][row] !== null);
  const guided = x !== "guidance" && chosen.some(has("guidance"));
  return [dots(x, y, chosen, guided ? byGuidance(chosen) : {color: data.scale[0]})];
}
// All images on the same axes, a colour and a marker for each engine, sweep or prompt, and a line through its means.
function compared() {
  const [x, y, by] = ["x", "y", "by"].map(id => byId(`explore-${id}`).value);
  const chosen = filtered.filter(row => columns[x][row] !== null && columns[y][row] !== null);
  byId("explore-caption").textContent = by === "guidance" ? "One dot an image, coloured by guidance."
    : "One dot an image. Each line goes through its colour’s means; a click on a name below hides it.";
  const layout = {height: 440, xaxis: axes[x], yaxis: axes[y], showlegend: by !== "guidance", legend: {orientation: "h", y: -0.18}};
  if (by === "guidance") return {data: [dots(x, y, chosen, byGuidance(chosen, true))], layout};
  const groups = Map.groupBy(chosen, row => columns[by][row] < colours.length - 1 ? columns[by][row] : -1);
  const traces = [];
  for (const [index, members] of [...groups].sort(([a], [b]) => Number(a < 0) - Number(b < 0) || a - b)) {
    const place = index < 0 ? colours.length - 1 : index, name = index < 0 ? "others" : names[by][index] ?? "none";
    const look = {color: colours[place], symbol: symbols[place]};
    const label = inert(by === "run_id" ? sweepLabel(name) : short(name));
    traces.push({...dots(x, y, members, look), name: label, legendgroup: index, showlegend: true});
    const means = meansAlong(x, y, members);
    if (means.length < 2) continue;
    traces.push({
      type: "scatter", mode: "lines", x: means.map(([at]) => at), y: means.map(([, at]) => at),
      line: {color: colours[place], width: 2.5}, legendgroup: index, showlegend: false, hoverinfo: "skip",
    });
  }
  return {data: traces, layout};
}
function meansAlong(x, y, members) {
  const sorted = members.toSorted((a, b) => plottedValue(x, a) - plottedValue(x, b)), size = Math.max(8, Math.ceil(sorted.length / 8)), means = [];
  const mean = (name, bin) => bin.reduce((sum, row) => sum + plottedValue(name, row), 0) / bin.length;
  for (let start = 0; start + size / 2 <= sorted.length; start += size) {
    const bin = sorted.slice(start, start + size);
    means.push([mean(x, bin), mean(y, bin)]);
  }
  return means;
}

function drawReportPlot(plot) {
  const isNew = !plot.data;
  if (plot.id === "explore") drawFigure(plot, compared());
  else {
    const {data: traces, layout, points} = structuredClone(data.figures[plot.id]);
    drawFigure(plot, {data: points?.x ? [...engineDots(points), ...traces] : traces, layout});
  }
  if (isNew && plot.tabIndex === 0) attend(plot);
}
// A plot's dots from left to right, the way that the arrow keys go.
function path(plot) {
  const along = plot.data.filter(trace => trace.customdata).flatMap(trace =>
    trace.customdata.map((row, index) => ({row, x: trace.x[index], y: trace.y[index]})));
  return along.sort((a, b) => a.x - b.x || a.y - b.y || a.row - b.row).map(dot => dot.row);
}
function attend(plot) {
  const pointed = pin => event => {
    const row = event.points[0].customdata;
    if (row === undefined || (pinned && !pin)) return;
    show(row, {list: path(plot), pin, at: plot, anchor: plot.querySelector(".hovertext")});
  };
  plot.on("plotly_hover", pointed(false));
  plot.on("plotly_unhover", leave);
  plot.on("plotly_click", pointed(true));
}
function go(plot, row) {
  const curveNumber = plot.data.findIndex(trace => trace.customdata?.includes(row));
  Plotly.Fx.hover(plot, [{curveNumber, pointNumber: plot.data[curveNumber].customdata.indexOf(row)}]);
  show(row, {list: path(plot), at: plot, anchor: plot.querySelector(".hovertext")});
}
const moves = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity};
function travel(event) {
  const plot = event.currentTarget, list = plot.data ? path(plot) : [];
  if (!list.length || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter") { pinned = true; return; }
  if (!(event.key in moves)) return;
  event.preventDefault();
  const at = list.indexOf(shown), to = at < 0 ? 0 : at + moves[event.key];
  pinned = false;
  go(plot, list[Math.min(Math.max(to, 0), list.length - 1)]);
}
for (const plot of plots) {
  if (plot.tabIndex !== 0) continue;
  plot.addEventListener("keydown", travel);
  plot.addEventListener("focus", () => {
    const list = plot.data && plot.matches(":focus-visible") ? path(plot) : [];
    if (list.length && shown === null) go(plot, list[0]);
  });
  plot.addEventListener("blur", leave);
}
for (const id of ["x", "y", "by"]) byId(`explore-${id}`).addEventListener("input", () => draw(byId("explore")));
// Images come after the plots in sight, which the observer draws in the next frame.
startPlots(drawReportPlot).then(() => requestAnimationFrame(() => setTimeout(fill)));

// Grids of images, best and worst, disagreements, and the table of images

function grids() {
  const engines = Map.groupBy(filtered.filter(has("across")), row => named("engine", row));
  byId("grids").replaceChildren(...[...engines].map(([engine, members]) => {
    const guided = members.some(has("down")), downs = guided ? data.bins.guidance : [""];
    const cells = Map.groupBy(members, row => `${guided ? columns.down[row] : 0} ${columns.across[row]}`);
    const body = downs.map((label, down) => {
      const title = make("th", {scope: "row"}, guided && !down ? `guidance ${label}` : label);
      return make("tr", {}, title, ...data.bins.steps.map((_, across) => cell(cells.get(`${down} ${across}`) ?? [])));
    });
    const titles = data.bins.steps.map((label, index) => make("th", {scope: "col"}, index ? label : `${label} steps`));
    const head = make("tr", {}, make("td"), ...titles);
    return make("table", {class: "grid"}, make("caption", {}, engine), make("thead", {}, head), make("tbody", {}, ...body));
  }));
}

// The image with the median overall score, and the number of images.
function cell(rowsOfCell) {
  if (!rowsOfCell.length) return make("td", {}, make("span", {class: "empty"}, "none"));
  const worth = row => columns.overall[row] ?? -1e9, ranked = rowsOfCell.toSorted((a, b) => worth(b) - worth(a));
  const scored = ranked.filter(has("overall")).length;
  return make("td", {}, picture(ranked[Math.floor(Math.max(scored - 1, 0) / 2)], ranked), make("small", {}, whole(rowsOfCell.length)));
}

function captioned(row, list, ...lines) {
  const prompt = make("span", {class: "prompt"}, promptOf(row));
  return make("figure", {}, picture(row, list), make("figcaption", {}, ...lines, settings(row), prompt));
}
function extremes() {
  const several = names.engine.length > 1;
  const figure = (row, metric, list) => captioned(row, list, make("b", {}, number(columns[metric][row])),
    ...(several ? [make("i", {}, short(named("engine", row)))] : []));
  byId("extremes").replaceChildren(...metrics.flatMap(metric => {
    const ranked = filtered.filter(has(metric)).sort((a, b) => columns[metric][b] - columns[metric][a]);
    const best = ranked.slice(0, Math.min(4, Math.ceil(ranked.length / 2)));
    const worst = ranked.slice(Math.max(ranked.length - 4, best.length)).reverse();
    const ends = [["best", best], ["worst", worst]].filter(([, members]) => members.length).map(([title, members]) =>
      make("div", {}, make("h3", {}, `${labels[metric]}, ${title}`),
        make("div", {class: "strip"}, ...members.map(row => figure(row, metric, members)))));
    return ends.length ? [make("div", {class: "ends"}, ...ends)] : [];
  }));
}

function pairs() {
  const rowsShown = new Set(filtered);
  byId("pairs").replaceChildren(...data.pairs.slice(0, 6).flatMap(({left: one, right: other, share, pairs}) => {
    const pairsShown = pairs.filter(pair => pair.every(row => rowsShown.has(row))).slice(0, 3);
    if (!pairsShown.length) return [];
    const score = (metric, row) => `${labels[metric]} ${number(columns[metric][row])} (${signed(deviation(metric, row))})`;
    const scores = (row, favourite) => [one, other].map(metric => make(metric === favourite ? "b" : "span", {}, score(metric, row)));
    const duels = pairsShown.map(([a, b]) =>
      make("div", {class: "duel"}, captioned(a, [a, b], ...scores(a, one)), captioned(b, [a, b], ...scores(b, other))));
    return [
      make("h3", {}, `${labels[one]} against ${labels[other]}`),
      make("p", {class: "soft"}, `They order ${Math.round(100 * share)} % of pairs oppositely.`),
      make("div", {class: "duels"}, ...duels),
    ];
  }));
  byId("no-pairs").hidden = byId("pairs").childElementCount > 0;
}

let sorted = "overall", down = true, most = 20;
const sortable = {
  engine: "Engine", run_id: "Run", steps: "Steps", guidance: "Guidance", seconds: "Seconds", ...labels, overall: "Overall, SD",
};
const forms = {
  engine: row => short(named("engine", row)), run_id: row => sweepLabel(named("run_id", row)),
  steps: row => whole(columns.steps[row]), guidance: row => guidance(columns.guidance[row]),
};
const heads = Object.entries(sortable).map(([name, label]) => {
  const button = make("button", {type: "button"}, label);
  button.addEventListener("click", () => { [down, sorted] = [sorted === name ? !down : true, name]; table(); });
  return make("th", {scope: "col", "data-column": name, class: name in names ? "" : "number"}, button);
});
byId("images-head").append(make("th", {scope: "col"}, "Image"), ...heads);
function table() {
  const worth = row => columns[sorted][row], missing = row => Number(worth(row) === null);
  const ranked = filtered.toSorted((a, b) => missing(a) - missing(b) || (down ? worth(b) - worth(a) : worth(a) - worth(b)));
  for (const head of heads) {
    head.setAttribute("aria-sort", head.dataset.column !== sorted ? "none" : down ? "descending" : "ascending");
  }
  const written = (name, row) => name in forms ? forms[name](row) : number(columns[name][row]);
  byId("images-body").replaceChildren(...ranked.slice(0, most).map(row => make("tr", {},
    make("td", {class: "who"}, picture(row, ranked), make("span", {class: "prompt"}, promptOf(row))),
    ...Object.keys(sortable).map(name => make("td", {class: name in names ? "" : "number"}, written(name, row))))));
  byId("more").hidden = ranked.length <= most;
}
byId("more").addEventListener("click", () => { most += 40; table(); });

filter();
