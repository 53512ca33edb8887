// @ts-check
// The sweep report's script. `data` is that of `points.point_data` and the figures; all its texts are set as text.
const data = JSON.parse(byId("data").textContent);
const {names, columns, labels, axes, factors} = data;
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
  const others = Object.keys(factors).map(name => `, ${short(named(name, row) ?? "unknown")}`).join("");
  return `${columns.steps[row] ?? "?"} steps${guided}${others}`;
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
    ...Object.entries(factors).map(([name, label]) => [label, named(name, row)]),
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

const choosers = ["engine", "run_id", ...Object.keys(factors)];
const hidden = Object.fromEntries(choosers.map(name => [name, new Set()]));
let filtered = rows, filled = false;
function filter() {
  const wanted = byId("prompt").value.trim().toLowerCase();
  const worded = names.prompt.map(prompt => prompt.toLowerCase().includes(wanted));
  const chosen = row => choosers.every(name => !hidden[name].has(columns[name][row]));
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
  for (const list of [listSeeds, grids, extremes, pairs, table]) list();
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
byId("choosers").append(...chooser("engine", "Engines", short), ...chooser("run_id", "Sweeps", sweepLabel),
  ...Object.entries(factors).flatMap(([name, label]) => chooser(name, `${label}s`, text => text === null ? "unknown" : short(text))));
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
// A colour for each value; of steps by its logarithm, as on their axis.
function byValue(name, chosen, bar) {
  const log = name === "steps", place = row => log ? Math.log2(columns.steps[row] || 1) : plottedValue(name, row);
  const known = filtered.filter(has(name)).map(place), [cmin, cmax] = name === "guidance" ? data.guidance
    : known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const ticks = log ? {tickvals: axes.steps.tickvals.map(Math.log2), ticktext: axes.steps.ticktext} : {};
  const colorbar = {thickness: 10, outlinewidth: 0, title: {text: axes[name]?.title.text ?? ""}, ...ticks};
  return {color: chosen.map(row => place(row) ?? cmin), cmin, cmax, colorscale: scale, ...(bar ? {colorbar} : {})};
}
function engineDots({engine, x, y}) {
  const chosen = filtered.filter(row => named("engine", row) === engine && columns[x][row] !== null && columns[y][row] !== null);
  const guided = x !== "guidance" && chosen.some(has("guidance"));
  return [dots(x, y, chosen, guided ? byValue("guidance", chosen, false) : {color: data.scale[0]})];
}
// All images on the same axes, a colour and a marker for each engine, sweep or prompt, and a line through its means.
function compared() {
  const [x, y, by] = ["x", "y", "by"].map(id => byId(`explore-${id}`).value);
  const chosen = filtered.filter(row => columns[x][row] !== null && columns[y][row] !== null);
  byId("explore-caption").textContent = by === "guidance" ? "One dot an image, coloured by guidance."
    : "One dot an image. Each line goes through its colour’s means; a click on a name below hides it.";
  const layout = {height: 440, xaxis: axes[x], yaxis: axes[y]};
  return {data: coloured(x, y, by, chosen, true), layout: {...layout, ...legend(by)}};
}
const legend = by => ({showlegend: by in names, legend: {orientation: "h", y: -0.18}});
function coloured(x, y, by, chosen, lines) {
  if (!(by in names)) return [dots(x, y, chosen, byValue(by, chosen, true))];
  const groups = Map.groupBy(chosen, row => columns[by][row] < colours.length - 1 ? columns[by][row] : -1);
  const traces = [];
  for (const [index, members] of [...groups].sort(([a], [b]) => Number(a < 0) - Number(b < 0) || a - b)) {
    const place = index < 0 ? colours.length - 1 : index, name = index < 0 ? "others" : names[by][index] ?? "none";
    const look = {color: colours[place], symbol: symbols[place]};
    const label = inert(by === "run_id" ? sweepLabel(name) : short(name));
    traces.push({...dots(x, y, members, look), name: label, legendgroup: index, showlegend: true});
    const means = lines ? meansAlong(x, y, members) : [];
    if (means.length < 2) continue;
    traces.push({
      type: "scatter", mode: "lines", x: means.map(([at]) => at), y: means.map(([, at]) => at),
      line: {color: colours[place], width: 2.5}, legendgroup: index, showlegend: false, hoverinfo: "skip",
    });
  }
  return traces;
}
// The images' embeddings in the plane; both directions have one scale, so that distances can be seen.
function mapped() {
  const by = byId("map-by").value, chosen = filtered.filter(row => columns.map_x[row] !== null && (by in names || columns[by][row] !== null));
  const bare = {showticklabels: false, showgrid: false, ticks: ""};
  const layout = {height: 520, xaxis: bare, yaxis: {...bare, scaleanchor: "x"}, ...legend(by)};
  return {data: coloured("map_x", "map_y", by, chosen, false).map(trace => ({...trace, hovertemplate: "<extra></extra>"})), layout};
}
// A line an image over axes side by side, each from its lowest to its highest value; of the others an even sample.
const MOST_LINES = 400;
function parallel() {
  const by = byId("parallel-by").value, across = ["steps", "guidance", "seconds", ...metrics, "overall"].filter(name => name in axes);
  const ends = Object.fromEntries(across.map(name => {
    const values = rows.filter(has(name)).map(row => plottedValue(name, row));
    return [name, values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity])];
  }));
  const scaled = name => name === "steps" ? value => Math.log(Math.max(value, 1)) : value => value;
  const height = (name, row) => {
    const [low, high] = ends[name].map(scaled(name));
    return columns[name][row] === null ? null : high > low ? (scaled(name)(plottedValue(name, row)) - low) / (high - low) : 0.5;
  };
  const worth = row => columns[by]?.[row] ?? null;
  const ranked = filtered.filter(row => worth(row) !== null).sort((a, b) => worth(b) - worth(a));
  const count = Math.ceil(ranked.length / 10), every = Math.ceil((ranked.length - count) / MOST_LINES);
  const others = ranked.slice(count).filter((_, index) => index % every === 0);
  const lines = (chosen, line, width) => ({
    type: "scatter", mode: "lines", hoverinfo: "none", line: {color: line, width}, connectgaps: false,
    x: chosen.flatMap(() => [...across.keys(), null]), y: chosen.flatMap(row => [...across.map(name => height(name, row)), null]),
    customdata: chosen.flatMap(row => [...across.map(() => row), null]),
  });
  const plot = byId("parallel"), texts = name => ends[name].map(value => name === "guidance" ? guidance(value) : name === "steps" ? whole(value) : number(value));
  plot.order = ranked;
  const note = {showarrow: false, font: {size: 11, color: variable("--soft")}};
  const annotations = across.flatMap((name, x) => texts(name).map((text, y) => ({...note, x, y, text, yshift: y ? 10 : -10})));
  const shapes = across.map((_, x) => ({type: "line", x0: x, x1: x, y0: 0, y1: 1, line: {color: variable("--rule"), width: 1}, layer: "below"}));
  return {
    data: [lines(others, variable("--faint"), 1), lines(ranked.slice(0, count), variable("--line"), 1.2)],
    layout: {
      height: 440, annotations, shapes, margin: {l: 28, r: 28, t: 24, b: 24}, dragmode: false,
      xaxis: {tickvals: [...across.keys()], ticktext: across.map(name => axes[name].title.text), range: [-0.3, across.length - 0.7], showgrid: false},
      yaxis: {range: [-0.06, 1.06], visible: false},
    },
  };
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
  const drawings = {explore: compared, map: mapped, parallel};
  if (plot.id in drawings) drawFigure(plot, drawings[plot.id]());
  else {
    const {data: traces, layout, points} = structuredClone(data.figures[plot.id]);
    drawFigure(plot, {data: points?.x ? [...engineDots(points), ...traces] : traces, layout});
  }
  if (isNew && plot.tabIndex === 0) attend(plot);
}
// A plot's dots from left to right, the way that the arrow keys go.
function path(plot) {
  if (plot.order) return plot.order;
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
for (const select of all("[id^=explore-], #parallel-by, #map-by")) {
  select.addEventListener("input", () => draw(byId(select.id.split("-")[0])));
}
// Images come after the plots in sight, which the observer draws in the next frame.
startPlots(drawReportPlot).then(() => requestAnimationFrame(() => setTimeout(fill)));

// One prompt and seed at several settings, and two of these images on each other

const two = {places: [], next: 0}, onDrawn = {timer: 0};
let seedGroups = new Map();
function listSeeds() {
  const key = row => JSON.stringify([columns.engine[row], columns.prompt[row], columns.seed[row]]);
  const prompted = filtered.filter(row => columns.prompt[row] !== null && columns.steps[row] !== null);
  const several = groups => [...groups].filter(([, members]) => members.length > 1).sort(([, a], [, b]) => b.length - a.length);
  let groups = several(Map.groupBy(prompted.filter(has("seed")), key));
  const seeded = groups.length > 0;
  if (!seeded) groups = several(Map.groupBy(prompted, row => JSON.stringify([columns.engine[row], columns.prompt[row]])));
  seedGroups = Map.groupBy(groups, ([, [row]]) => JSON.stringify([columns.engine[row], columns.prompt[row]]));
  const label = row => (names.engine.length > 1 ? `${short(named("engine", row))}: ` : "") + promptOf(row).slice(0, 80);
  byId("seeds-words").textContent = seeded ? "One prompt and one seed, so that only the settings differ: steps grow to the right" + ("guidance" in axes ? ", guidance downwards" : "") + ". Choose two images to lay them on each other."
    : groups.length ? "No two images share prompt and seed. These share their prompt alone, so they differ by their seeds too; flexy sweep new --sampling paired makes images that differ by their settings only."
      : "No two images share a prompt: nothing can be compared. flexy sweep new --sampling paired makes images that can be.";
  for (const id of ["seeds-choice", "seeds-shown"]) byId(id).hidden = !groups.length;
  byId("seeds-seed").parentElement.hidden = !seeded;
  byId("seeds-two").className = seeded ? "" : "apart";
  byId("seeds-prompt").replaceChildren(...[...seedGroups].map(([value, [[, [row]]]]) => make("option", {value}, label(row))));
  listSeedsOfPrompt();
}
function listSeedsOfPrompt() {
  const groups = seedGroups.get(byId("seeds-prompt").value) ?? [];
  byId("seeds-seed").replaceChildren(...groups.map(([value, [row]]) => make("option", {value}, columns.seed[row] ?? "any")));
  chooseSeed();
}
function seedRows() {
  const found = (seedGroups.get(byId("seeds-prompt").value) ?? []).find(([value]) => value === byId("seeds-seed").value);
  return (found?.[1] ?? []).toSorted((a, b) => columns.steps[a] - columns.steps[b] || (plottedValue("guidance", a) ?? 0) - (plottedValue("guidance", b) ?? 0));
}
function chooseSeed() {
  const members = seedRows();
  [two.places, two.next] = [[members[0], members[members.length - 1]], 0];
  drawSeeds();
}
function drawSeeds() {
  const members = seedRows(), score = byId("seeds-score").value;
  if (!members.length) return;
  const axis = (name, bin, write) => {
    const values = members.map(row => plottedValue(name, row)).sort((a, b) => a - b), titles = [...new Set(values.map(write))];
    if (titles.length <= (innerWidth < 600 ? 5 : 8)) return {titles, at: row => titles.indexOf(write(plottedValue(name, row)))};
    return {titles: data.bins[name], at: row => columns[bin][row]};
  };
  const across = axis("steps", "across", String), down = axis("guidance", "down", guidance);
  const cells = Map.groupBy(members, row => `${down.at(row)} ${across.at(row)}`);
  const mark = row => two.places.map((place, index) => place === row ? "AB"[index] : "").join("");
  const tile = row => {
    const value = columns[score]?.[row] ?? null;
    const button = make("button", {type: "button", class: "picture", "data-row": row, "aria-pressed": String(mark(row) !== "")}, image(row), make("b", {}, mark(row)));
    button.addEventListener("click", () => {
      two.places[two.next] = row;
      two.next = 1 - two.next;
      drawSeeds();
      byId("seeds-grid").querySelector(`[data-row="${row}"]`).focus();
    });
    return [button, make("small", {}, score === "overall" ? signed(value) : number(value))];
  };
  const titles = across.titles.map((title, index) => make("th", {scope: "col"}, index ? title : `${title} steps`));
  const body = down.titles.map((title, y) => make("tr", {},
    make("th", {scope: "row"}, title === "–" ? "" : y ? title : `guidance ${title}`),
    ...across.titles.map((_, x) => make("td", {}, ...(cells.get(`${y} ${x}`) ?? []).flatMap(tile)))));
  byId("seeds-grid").replaceChildren(make("table", {class: "grid"}, make("thead", {}, make("tr", {}, make("td"), ...titles)), make("tbody", {}, ...body)));
  const [a, b] = two.places;
  byId("seeds-stack").replaceChildren(image(a), image(b));
  const facts = [["Steps", "steps", whole], ["Guidance", "guidance", guidance], ["Seconds", "seconds", number], ...metrics.map(metric => [labels[metric], metric, number]), ["Overall, SD", "overall", number]];
  const differ = Object.entries(factors).map(([name, label]) => make("tr", {}, make("th", {scope: "row"}, label), ...two.places.map(row => make("td", {class: "number"}, names[name][columns[name][row]] ?? "–"))));
  byId("seeds-scores").replaceChildren(...differ, ...facts.filter(([, name]) => two.places.some(has(name))).map(([label, name, write]) =>
    make("tr", {}, make("th", {scope: "row"}, label), ...two.places.map(row => make("td", {class: "number"}, write(columns[name][row]))))));
  slide();
}
function slide() {
  byId("seeds-stack").style.setProperty("--at", `${byId("seeds-slider").value}%`);
}
// Under three times a second, so that nobody is harmed.
function flicker() {
  const button = byId("seeds-flicker"), on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  clearInterval(onDrawn.timer);
  byId("seeds-stack").className = on ? "first" : "";
  if (on) onDrawn.timer = setInterval(() => { byId("seeds-stack").className = byId("seeds-stack").className === "first" ? "second" : "first"; }, 700);
}
byId("seeds-prompt").addEventListener("input", listSeedsOfPrompt);
byId("seeds-seed").addEventListener("input", chooseSeed);
byId("seeds-score").addEventListener("input", drawSeeds);
byId("seeds-slider").addEventListener("input", slide);
byId("seeds-flicker").addEventListener("click", flicker);

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
