// @ts-check
// Shared by the pages with plots: elements, and figures that Plotly draws in the page's colours as they come near.

/** @typedef {{data: any[], layout: any}} PlotFigure */

/** @param {string} id @returns {any} */
const byId = id => document.getElementById(id);
/** @param {string} selector @param {ParentNode} root @returns {any[]} */
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/**
 * An element with its attributes and children.
 * @param {string} tag @param {Record<string, any>} attributes @param {...(Node | string)} children
 */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
/** @param {string} name */
const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * Draw the figure; traces whose `meta` is "ink", "band" or "veil" take the page's colours.
 * @param {any} plot @param {PlotFigure} figure
 */
function drawFigure(plot, {data: traces, layout: own}) {
  const [ink, soft, rule, paper, band, veil] = ["ink", "soft", "rule", "card", "band", "veil"].map(name => variable(`--${name}`));
  for (const trace of traces) {
    if (trace.meta === "ink") (trace.line ?? trace.marker).color = ink;
    if (trace.meta === "band") trace.fillcolor = band;
    if (trace.meta === "veil") trace.colorscale[1][1] = veil;
    if (trace.texttemplate) trace.textfont = {color: ink};
    const bar = trace.colorbar ?? trace.marker?.colorbar;
    if (bar) Object.assign(bar, {tickfont: {color: soft}});
  }
  const axis = {gridcolor: rule, linecolor: rule, zerolinecolor: ink, zeroline: false, automargin: true, tickfont: {color: soft}};
  const layout = {
    height: 300, margin: {l: 48, r: 12, t: 8, b: 44}, showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: variable("--sans"), size: 12, color: ink},
    hoverlabel: {bgcolor: paper, bordercolor: rule, font: {color: ink}},
    ...own,
    xaxis: {...axis, ...own.xaxis}, yaxis: {...axis, ...own.yaxis},
  };
  Plotly.react(plot, traces, layout, {responsive: true, displayModeBar: false, plotlyServerURL: ""});
}

const plots = all(".plot");
const near = new Set();
/** How the page draws a plot. @type {(plot: any) => void} */
let drawPlot;
function draw(plot) {
  plot.dataset.stale = "";
  drawPlot(plot);
}
function redraw() {
  for (const plot of plots) {
    if (near.has(plot)) draw(plot);
    else plot.dataset.stale = "yes";
  }
}
// Plotly comes compressed, a third of its size, and runs when the rest of the page can be read.
async function unpackPlotly() {
  const packed = atob(byId("plotly").textContent), bytes = new Uint8Array(packed.length);
  for (let index = 0; index < bytes.length; index++) bytes[index] = packed.charCodeAt(index);
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.body.append(make("script", {}, await new Response(unpacked).text()));
}
/**
 * Draw each plot when it comes near: dozens at once would keep the page from opening.
 * @param {(plot: any) => void} drawing
 */
function startPlots(drawing) {
  drawPlot = drawing;
  for (const plot of plots) plot.dataset.stale = "yes";
  const watcher = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
      near[isIntersecting ? "add" : "delete"](target);
      if (isIntersecting && /** @type {any} */ (target).dataset.stale) draw(target);
    }
  }, {rootMargin: "300px"});
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => plots.filter(plot => plot.dataset.stale).forEach(draw));
  return new Promise(done => addEventListener("load", () => setTimeout(() => unpackPlotly().then(() => {
    for (const plot of plots) watcher.observe(plot);
  }).finally(() => done(null)))));
}
