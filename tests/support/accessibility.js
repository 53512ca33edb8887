// What a person needs of a page and a test can measure, asked in the page itself.
(() => {
  const shown = element => element.checkVisibility({visibilityProperty: true});

  // [contrast, text] of all visible text by WCAG 2.2: what it is written in against what lies under it.
  function contrasts() {
    const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
    const rgba = colour => {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
      return [red, green, blue, alpha / 255];
    };
    const over = ([red, green, blue, alpha], under) => [red, green, blue].map((value, index) => value * alpha + under[index] * (1 - alpha));
    const ground = element => element ? over(rgba(getComputedStyle(element).backgroundColor), ground(element.parentElement)) : [255, 255, 255];
    const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([red, green, blue]) => 0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const words = texts.currentNode.data.trim(), element = texts.currentNode.parentElement, style = getComputedStyle(element);
      if (!words || element.closest("script, style, noscript, datalist, .unseen, .skip") || !shown(element)) continue;
      const under = ground(element), ink = over(rgba(element instanceof SVGElement ? style.fill : style.color), under);
      const [dim, bright] = [light(ink), light(under)].sort((one, other) => one - other);
      found.push([(bright + 0.05) / (dim + 0.05), words.slice(0, 60)]);
    }
    return found;
  }

  // The visible controls, regions and pictures that a screen reader could only call by their kind.
  function nameless() {
    const kinds = "button, input, select, a, aside, [role=application], [role=region], [role=img]";
    const named = element => element.getAttribute("aria-label") || element.labels?.length || element.textContent.trim() || element.querySelector("img[alt]:not([alt=''])");
    return [...document.querySelectorAll(kinds)].filter(element => shown(element) && !named(element)).map(element => element.outerHTML.slice(0, 120));
  }
  return {contrasts, nameless};
})()
