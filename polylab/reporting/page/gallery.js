// All layers at one look, small, in the aligned order of skills.

function galleryNode(all, state, rows, choose) {
  const list = el("div", { class: "gallery" });
  const canvases = all.layers.map((name, i) => {
    const canvas = el("canvas", { width: all.skills, height: 1, "aria-hidden": "true" });
    list.append(el("button", { type: "button", onclick: () => choose(i), "aria-label": `Show layer ${name}` }, canvas, el("span", {}, name)));
    return canvas;
  });
  const node = el("details", { ontoggle: () => update() }, el("summary", {}, `All ${all.layers.length} layers at this look`), list);
  node.hidden = all.layers.length < 2;
  opensForPrint(node, () => update());
  redraws.push(() => update());

  function update() {
    if (!node.open) return;
    const order = rows();
    const theme = inks(false).name;
    const kind = { weights: "relative", gates: "share", change: "signed" }[state.kind];
    canvases.forEach((canvas, layer) => {
      const value = cellOf(all, { ...state, layer, head: -1 });
      paintSmall(canvas, { rows: order, columns: all.skills, value, colour: colourOf(kind, theme) });
    });
  }

  return { node, update };
}

// One pixel a cell; style makes it larger. More rows than pixels are thinned.
function paintSmall(canvas, { rows, columns, value, colour }) {
  const every = Math.max(1, Math.ceil(rows.length / 236));
  const shown = rows.filter((_, i) => i % every === 0);
  canvas.width = columns;
  canvas.height = Math.max(1, shown.length);
  const pen = canvas.getContext("2d");
  shown.forEach((row, i) => {
    for (let k = 0; k < columns; k++) {
      pen.fillStyle = colour(value(row, k));
      pen.fillRect(k, i, 1, 1);
    }
  });
}
