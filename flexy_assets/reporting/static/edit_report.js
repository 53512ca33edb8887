// @ts-check
// The edit report's script. A block keeps its names apart from other pages'.
{
  for (const image of all("img[data-same]")) image.src = byId(image.dataset.same).src;

  const tasks = all("article"), search = byId("search"), showCandidates = byId("open");
  function filter() {
    const won = byId("filter").elements.won.value, words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const task of tasks) {
      const fits = won === "all" || task.dataset.won === won;
      task.hidden = !fits || !task.querySelector("header").textContent.toLowerCase().includes(words);
      if (!task.hidden) shown++;
    }
    byId("count").textContent = `${shown} of ${tasks.length} shown`;
  }
  if (search) {
    byId("filter").addEventListener("submit", event => event.preventDefault());
    for (const input of [search, ...all("input[name=won]")]) input.addEventListener("input", filter);
    showCandidates.addEventListener("input", () => { for (const task of tasks) task.querySelector("details").open = showCandidates.checked; });
    filter();
  }

  const large = byId("large");
  let opened = null;
  function enlarge(button) {
    opened = button;
    const task = button.closest("article"), source = task.querySelector(".source img"), picture = button.querySelector("img");
    const [left, right] = all("img", large);
    byId("large-prompt").textContent = task.querySelector("h3").textContent;
    left.closest("figure").hidden = !source || source === picture;
    left.src = source ? source.src : picture.src;
    right.src = picture.src;
    right.alt = picture.alt;
    byId("large-words").replaceChildren(...all("figcaption > *", button.closest("figure")).map(part => part.cloneNode(true)));
    byId("large-detail").textContent = [picture.alt, button.dataset.detail].filter(Boolean).join(": ");
    if (!large.open) large.showModal();
  }
  function step(by) {
    const buttons = all("button.picture", opened.closest("article"));
    enlarge(buttons[(buttons.indexOf(opened) + by + buttons.length) % buttons.length]);
  }
  document.addEventListener("click", event => {
    const button = /** @type {Element} */ (event.target).closest("button.picture");
    if (button) enlarge(button);
    else if (event.target === large) large.close();
  });
  large.addEventListener("keydown", event => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
  byId("large-before").addEventListener("click", () => step(-1));
  byId("large-after").addEventListener("click", () => step(1));
  byId("large-close").addEventListener("click", () => large.close());

  if (plots.length) {
    const figures = JSON.parse(byId("data").textContent);
    startPlots(plot => drawFigure(plot, structuredClone(figures[plot.id])));
  }
}
