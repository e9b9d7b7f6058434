// From the data in the page to its sections.

const KINDS = { run: "A run", evaluation: "An evaluation of a run", sweep: "A sweep", adaptation: "An adaptation" };

function start() {
  const data = JSON.parse(document.getElementById("contents").textContent);
  const sections = { run: runSections, evaluation: runSections, sweep: sweepSections, adaptation: adaptationSections }[data.kind](data);
  heading(data);
  const main = document.getElementById("main");
  const links = el("ul");
  for (const { title, words, node } of sections) {
    const id = title.toLowerCase().replace(/[^a-z]+/g, "-");
    links.append(el("li", {}, el("a", { href: `#${id}` }, title)));
    main.append(el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), words ? el("p", { class: "say" }, words) : null, node));
  }
  document.getElementById("sections").append(links);
  // a canvas is as wide as its place on the page, which there is from now on
  sections.forEach(({ draw }) => draw?.());
  width = innerWidth;
  document.body.dataset.drawn = "yes";
}

function heading(data) {
  const heads = (data.headline ?? []).map(({ name, value, interval }) => el("li", {},
    el("div", { class: "name" }, name), el("div", { class: "figure" }, say(value)),
    el("div", { class: "sure" }, interval ? `${say(interval[0])} – ${say(interval[1])}` : "")));
  const facts = data.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, say(value))));
  document.getElementById("top").append(...[
    el("h1", {}, data.title),
    el("p", { class: "kind" }, `${KINDS[data.kind]} · folder ${data.folder}`),
    heads.length ? el("ul", { class: "heads" }, heads) : null,
    el("dl", { class: "facts" }, facts),
    data.notes.length ? el("ul", { class: "notes", "aria-label": "What this page lacks" }, data.notes.map((note) => el("li", {}, note))) : null,
  ].filter(Boolean));
}
