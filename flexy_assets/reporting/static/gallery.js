// @ts-check
// The gallery's page. What comes from outside is set as text, never as markup.

/** @param {string} id @returns {any} */
const byId = id => document.getElementById(id);
const form = byId("form"), fields = form.elements, message = byId("message"), view = byId("view");

/** @param {string} tag @returns {any} */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(child => known(child) && child !== false));
  return made;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("no answer: is flexy gallery still running?");
  }
  const body = await answer.json().catch(() => ({ error: `the gallery answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function say(words, bad = false) {
  message.textContent = words;
  message.classList.toggle("bad", bad);
}

const { engines, metrics, in_table: inTable, max_seed: maxSeed } = await ask("/choices");
const engineOf = name => engines.find(engine => engine.name === name);

// Words

const score = (value, like = value) => value.toFixed(Math.abs(like) < 1 ? 3 : 2).replace("-", "−");
const number = value => String(Number(value.toFixed(4))).replace("-", "−");
const count = (many, noun) => `${many.toLocaleString("en")} ${noun}${many === 1 ? "" : "s"}`;
const known = value => value !== null && value !== undefined;

function settings(image) {
  return [
    image.engine,
    known(image.steps) && count(image.steps, "step"),
    known(image.guidance) && `guidance\u00a0${number(image.guidance)}`,
    known(image.seed) && `seed\u00a0${image.seed}`,
    known(image.width) && known(image.height) && `${image.width}\u00a0×\u00a0${image.height}`,
  ].filter(Boolean).join(" · ");
}

const alt = image => `${image.prompt || "an image without a known prompt"} (${settings(image)})`;

// An image

function picture(image, side) {
  const shown = element("img", { src: `/image/${image.id}${side ? `?side=${side}` : ""}`, alt: alt(image), loading: "lazy" });
  shown.addEventListener("load", () => shown.classList.toggle("tiny", shown.naturalWidth <= 128));
  // Why it cannot be shown, in the server's words.
  shown.addEventListener("error", async () => {
    const words = await ask(shown.src).then(() => "no image", error => error.message);
    shown.replaceWith(element("span", { className: "absent" }, words));
  });
  return shown;
}

function scores(image, sortedBy = "") {
  const because = Map.groupBy(metrics.filter(({ name }) => !known(image.scores[name].value)), ({ name }) => image.scores[name].reason);
  return [
    element("dl", { className: "scores" }, ...metrics.map(({ name, label, meaning }) => {
      const { value } = image.scores[name];
      return element("div", { className: name === sortedBy ? "by" : "", title: meaning },
        element("dt", {}, label), element("dd", { className: known(value) ? "" : "missing" }, known(value) ? score(value) : "missing"));
    })),
    // One reason often holds for all.
    ...[...because].map(([reason, of]) => element("p", { className: "because bad", title: reason },
      because.size > 1 ? `${of.map(({ label }) => label).join(", ")}: ${reason}` : reason)),
  ];
}

const button = (label, onclick, properties = {}) => element("button", { type: "button", onclick, ...properties }, label);
const enlarging = (image, side) => button(picture(image, side), () => open([image]), { className: "picture" });
const using = image => button("Use settings", () => use(image));

function comparing(image) {
  const onchange = event => select(image, event.target.checked);
  const box = element("input", { type: "checkbox", checked: selection.has(image.id), onchange });
  box.dataset.id = image.id;
  return element("label", {}, box, "Compare");
}

function card(image, sortedBy) {
  return element("article", { className: `card${selection.has(image.id) ? " chosen" : ""}` },
    enlarging(image, 384),
    element("p", { className: "prompt", dir: "auto" }, image.prompt || "no prompt is recorded"),
    element("p", { className: "settings" }, settings(image)),
    ...scores(image, sortedBy),
    element("div", { className: "actions" }, comparing(image), using(image)));
}

// Two side by side

const selection = new Map();

function select(image, on) {
  if (on) selection.set(image.id, image);
  else selection.delete(image.id);
  if (selection.size > 2) selection.delete(selection.keys().next().value);
  for (const box of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("input[data-id]"))) {
    box.checked = selection.has(box.dataset.id);
    box.closest(".card")?.classList.toggle("chosen", box.checked);
  }
  const selected = [...selection.values()], full = selected.length === 2;
  byId("tray").hidden = !selected.length;
  byId("tray").replaceChildren(...selected.map(each => picture(each, 128)),
    element("span", {}, full ? "Two selected" : "Select one more"),
    button("Compare", () => open(selected), { className: "main", disabled: !full }),
    button("Clear", () => selected.forEach(each => select(each, false))));
}

const SETTINGS = {
  Prompt: image => image.prompt,
  "Negative prompt": image => image.negative_prompt,
  Engine: image => image.engine,
  Steps: image => image.steps,
  Guidance: image => known(image.guidance) ? number(image.guidance) : null,
  Seed: image => image.seed,
  Size: image => known(image.width) && known(image.height) ? `${image.width}\u00a0×\u00a0${image.height}` : null,
};
const FACTS = {
  "Seconds to make": image => known(image.elapsed_ms) ? number(image.elapsed_ms / 1000) : null,
  Made: image => image.created_at?.replace("T", " ").slice(0, 19) ?? null,
  Batch: image => image.batch,
};

function row(name, differs, cells, title = "") {
  return element("tr", { className: differs ? "differs" : "", title },
    element("th", { scope: "row" }, name, differs && element("span", { className: "hidden-words" }, " (differs)")),
    ...cells);
}

function facts(images, table, marked) {
  return element("tbody", {}, ...Object.entries(table).map(([name, of]) => {
    const values = images.map(image => of(image) ?? "–");
    return row(name, marked && new Set(values).size > 1, values.map(value => element("td", { dir: "auto" }, String(value))));
  }));
}

function results(images) {
  return element("tbody", {}, ...metrics.map(({ name, label, meaning }) => {
    const values = images.map(image => image.scores[name].value), [left, right] = values;
    const both = values.length === 2 && values.every(known);
    const cells = images.map((image, place) => {
      const { value, reason } = image.scores[name], lead = value - values[1 - place];
      if (!known(value)) return element("td", { className: "bad" }, `missing: ${reason}`);
      return element("td", {}, score(value), both && lead > 0 && element("em", {}, `▲ ${score(lead, value)}`));
    });
    return row(label, both && left !== right, cells, meaning);
  }));
}

function open(images) {
  const two = images.length === 2;
  view.replaceChildren(
    element("header", {}, element("h2", { id: "view-name" }, two ? "Side by side" : "Image"),
      button("Close", () => view.close(), { autofocus: true })),
    element("div", { className: `pair${two ? "" : " one"}` }, ...images.map(image =>
      element("figure", {}, picture(image), element("figcaption", {}, using(image))))),
    element("table", {}, results(images), facts(images, SETTINGS, true), facts(images, FACTS, false)));
  if (!view.open) view.showModal();
}
view.addEventListener("click", event => { if (event.target === view) view.close(); });

// The form

for (const { name } of engines) fields.engine.append(new Option(name, name));

function fit(values = {}) {
  const engine = engineOf(fields.engine.value);
  const own = { steps: engine.steps, guidance: engine.guidance, width: engine.side, height: engine.side, negative_prompt: "" };
  for (const [name, value] of Object.entries(own)) {
    const ignored = engine.ignores.includes(name);
    fields[name].disabled = ignored;
    fields[name].value = ignored ? "" : values[name] ?? value;
    fields[name].placeholder = ignored ? "the engine has none" : "";
  }
  for (const side of ["width", "height"]) fields[side].min = fields[side].step = engine.multiple;
  fields.prompt.placeholder = engine.example || "What the image should show";
}

function newSeed() {
  fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % (maxSeed + 1);
}

function use(image) {
  view.close();
  if (!engineOf(image.engine)) {
    say(`engine ${image.engine || "of this image"} is not in this model set: see FLEXY_MODELS`, true);
    return;
  }
  fields.engine.value = image.engine;
  fit(image);
  fields.prompt.value = image.prompt ?? "";
  if (known(image.seed)) fields.seed.value = image.seed;
  form.scrollIntoView({ block: "nearest" });
  fields.prompt.focus();
  say("The settings are in the form: change one and try it.");
}

fields.engine.addEventListener("change", () => fit());
byId("new-seed").addEventListener("click", newSeed);
fields.prompt.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
form.addEventListener("submit", async event => {
  event.preventDefault();
  const given = { engine: fields.engine.value, prompt: fields.prompt.value.replace(/\s+/g, " ").trim() };
  for (const name of ["steps", "guidance", "seed", "width", "height"])
    if (fields[name].value !== "") given[name] = Number(fields[name].value);
  if (fields.negative_prompt.value.trim()) given.negative_prompt = fields.negative_prompt.value.trim();
  byId("try").disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const { exists } = await ask("/trials", { method: "POST", headers, body: JSON.stringify(given) });
    say(exists ? "This image exists already." : "Queued.");
    await poll();
    byId("latest").scrollIntoView({ block: "nearest" });
  } catch (error) {
    say(error.message, true);
  }
  byId("try").disabled = false;
});

// Trials under way

let polling, drawn = "", ended = null;

function stateOf({ state, before, error, image, seconds }) {
  if (state === "waiting") return before ? `waiting: ${before} before it` : "waiting";
  if (state === "failed") return `failed: ${error}`;
  if (state === "done") return `done in ${seconds} s`;
  const scored = image ? metrics.filter(({ name }) => known(image.scores[name].value)).length : 0;
  return `${image ? `scoring, ${scored} of ${metrics.length}` : "making the image"}: ${seconds.toFixed(0)} s`;
}

function draw(trials) {
  const key = JSON.stringify(trials.map(trial => ({ ...trial, seconds: null })));
  const latest = trials[0];
  if (key !== drawn) {
    const image = latest.image, earlier = trials.slice(1).find(trial => trial.image)?.image;
    const compare = earlier && button("Compare with the trial before", () => open([earlier, image]));
    byId("latest").replaceChildren(
      image ? enlarging(image, 512) : element("div", { className: `none ${latest.state}` }, latest.state === "failed" ? "no image" : "…"),
      element("div", {},
        element("p", { className: `state soft${latest.state === "failed" ? " bad" : ""}`, id: "state" }),
        element("p", { className: "prompt", dir: "auto" }, latest.settings.prompt),
        element("p", { className: "settings" }, settings(latest.settings)),
        ...image ? scores(image) : [],
        image && element("div", { className: "actions" }, comparing(image), compare, using(image))));
    byId("others").replaceChildren(...trials.slice(1).filter(({ state }) => state !== "done").map(trial =>
      element("li", { className: trial.state === "failed" ? "bad" : "" }, `${trial.settings.prompt} (${settings(trial.settings)}): ${stateOf(trial)}`)));
    drawn = key;
  }
  byId("state").textContent = stateOf(latest);
}

async function poll() {
  clearTimeout(polling);
  try {
    const { trials } = await ask("/trials");
    if (trials.length) draw(trials);
    const over = trials.filter(({ state }) => state === "done" || state === "failed").map(({ id }) => id).join();
    if (ended !== null && over !== ended) {
      say(trials[0].state === "done" ? "Done." : "");
      await load();
    }
    ended = over;
    if (trials.some(({ state }) => state === "waiting" || state === "running")) polling = setTimeout(poll, 500);
  } catch (error) {
    say(error.message, true);
    polling = setTimeout(poll, 5000);
  }
}

// The images

const engine = byId("engine"), words = byId("words"), sort = byId("sort");
for (const name of inTable) engine.append(new Option(name, name));
for (const { name, label } of metrics) sort.append(new Option(`highest ${label}`, name));

const place = new URLSearchParams(location.search);
engine.value = inTable.includes(place.get("engine")) ? place.get("engine") : "";
words.value = place.get("prompt") ?? "";
sort.value = metrics.some(({ name }) => name === place.get("sort")) ? place.get("sort") : "newest";
let page = Math.max(1, Number.parseInt(place.get("page"), 10) || 1), lastRequest = 0;

async function load() {
  const request = ++lastRequest;
  const query = new URLSearchParams({ engine: engine.value, prompt: words.value, sort: sort.value, page: String(page) });
  try {
    const { images, count: many, size } = await ask(`/images?${query}`);
    // A newer request has replaced this one.
    if (request !== lastRequest) return;
    history.replaceState(null, "", `?${query}`);
    byId("images").replaceChildren(...images.map(image => card(image, sort.value)));
    const filtered = engine.value || words.value;
    byId("count").textContent = many ? count(many, "image")
      : filtered ? "No image matches." : "No image yet: try one, or plan a sweep with flexy sweep new.";
    byId("place").textContent = many > size ? `page ${page} of ${Math.ceil(many / size).toLocaleString("en")}` : "";
    byId("before").hidden = byId("after").hidden = many <= size;
    byId("before").disabled = page <= 1;
    byId("after").disabled = page * size >= many;
  } catch (error) {
    if (request === lastRequest) byId("count").textContent = error.message;
  }
}

function from(first) {
  page = first;
  return load();
}
let typing;
engine.addEventListener("change", () => from(1));
sort.addEventListener("change", () => from(1));
words.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => from(1), 250); });
for (const [id, by] of Object.entries({ before: -1, after: 1 }))
  byId(id).addEventListener("click", async () => {
    await from(page + by);
    byId("images-name").scrollIntoView();
  });

fit();
newSeed();
await Promise.all([load(), poll()]);

export {};
