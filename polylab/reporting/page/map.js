// A map of cells on a canvas: only the rows in sight are drawn, the pointer or arrow keys read them.

const FONT = '12px "Inter", ui-sans-serif, system-ui, "DejaVu Sans", sans-serif';
const TALLEST = 720;
const PRINT_ROWS = 44;
const PRINT_WIDTH = 700;
const GAP = 18;

class HeatMap {
  // `describe(row, column)` gives the line that is read out for a cell.
  constructor({ label, describe, idle = "Point at a cell, or focus the map and use the arrow keys." }) {
    Object.assign(this, { label, describe, idle, view: null, cursor: null });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.space = el("div", {}, this.canvas);
    this.scroll = el("div", { class: "map-scroll", tabindex: "0", role: "application", "aria-label": `${label}: arrow keys move from cell to cell, the line below reads them`, onkeydown: (event) => this.key(event), onscroll: () => this.draw(), onfocus: () => this.enter() }, this.space);
    this.mini = el("canvas", { class: "mini", "aria-hidden": "true", onpointerdown: (event) => this.jump(event), onpointermove: (event) => event.buttons && this.jump(event) });
    this.readout = el("p", { class: "readout idle", "aria-live": "polite" }, idle);
    this.paper = el("div", { class: "print" });
    this.node = el("div", {}, el("div", { class: "map" }, this.scroll, this.mini), this.paper, this.readout);
    this.scroll.addEventListener("pointermove", (event) => this.point(event));
    this.scroll.addEventListener("pointerleave", () => this.show(null));
    redraws.push(() => this.layout());
    prints.push({ before: () => this.print(), after: () => this.paper.replaceChildren() });
  }

  // view: {rows, names, columns: [label], groups: [{label, count}], value(row, column), kind, limit,
  //        tree, bands: row -> text, numbers}
  set(view) {
    const same = this.view && this.view.rows === view.rows && this.view.columns.length === view.columns.length;
    this.view = view;
    if (!same) this.cursor = null;
    this.layout();
    this.show(this.cursor, true);
  }

  measure(available, onPaper) {
    const { rows, names, columns, groups, tree } = this.view;
    const pen = this.canvas.getContext("2d");
    pen.font = FONT;
    const widest = (texts) => texts.reduce((most, text) => Math.max(most, pen.measureText(text).width), 0);
    const some = rows.length > 500 ? rows.filter((_, i) => i % 7 === 0) : rows;
    const nameWidth = Math.min(280, Math.max(40, widest(some.map((row) => names[row])) + 12));
    const treeWidth = tree && available > 560 ? Math.min(230, Math.max(90, available * 0.2)) : 0;
    const gaps = GAP * (Math.max(1, groups?.length ?? 1) - 1);
    const left = treeWidth + nameWidth + 8;
    const column = Math.max(7, Math.min(58, (available - left - gaps - 8) / columns.length));
    const row = onPaper ? 14 : rows.length <= 40 ? 21 : rows.length <= 120 ? 17 : 15;
    const upright = widest(columns) > column - 2;
    const labels = upright ? Math.min(130, widest(columns) + 10) : 22;
    const top = labels + (groups?.length > 1 ? 22 : 0);
    return { left, treeWidth, nameWidth, column, row, top, labels, upright, width: left + gaps + column * columns.length + 8 };
  }

  x(size, c) {
    const { groups } = this.view;
    let place = 0;
    for (let g = 0, first = 0; groups && g < groups.length; g++) {
      if (c < first + groups[g].count) break;
      first += groups[g].count;
      place += 1;
    }
    return size.left + c * size.column + place * GAP;
  }

  layout() {
    if (!this.view || !this.node.isConnected) return;
    const available = this.node.clientWidth;
    if (!available) return;
    const size = this.measure(available - 70, false);
    const content = size.top + this.view.rows.length * size.row + 4;
    const height = Math.min(TALLEST, content);
    this.size = { ...size, height, content, shown: Math.min(size.width, available) };
    this.scroll.style.width = `${Math.min(available, size.width + (content > height ? 16 : 0))}px`;
    this.scroll.style.height = `${height + (size.width > available ? 14 : 0)}px`;
    this.space.style.height = `${content}px`;
    this.space.style.width = `${size.width}px`;
    resize(this.canvas, size.width, height);
    this.mini.hidden = content <= height;
    this.mini.style.display = content <= height ? "none" : "";
    if (content > height) resize(this.mini, 56, height);
    this.overview = null;
    this.draw();
  }

  draw() {
    if (!this.size) return;
    const { size, view } = this;
    const scrolled = this.scroll.scrollTop;
    const first = Math.max(0, Math.floor(scrolled / size.row));
    const last = Math.min(view.rows.length, Math.ceil((scrolled + size.height - size.top) / size.row));
    const pen = this.canvas.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, size.width, size.height);
    this.paint(pen, size, { first, last, offset: size.top - scrolled, bottom: size.height, theme: inks(false) });
    this.frame(pen, size.top - scrolled);
    this.drawMini();
  }

  // Rows `first` to `last`; row i begins at `offset + i * height of a row`.
  paint(pen, size, { first, last, offset, bottom, theme }) {
    const { view } = this;
    const colours = columnColours(view, theme.name);
    const y = (place) => offset + place * size.row;
    const seam = size.row >= 9 && size.column >= 9 ? 1 : 0;
    pen.save();
    pen.beginPath();
    pen.rect(0, size.top, size.width, bottom - size.top);
    pen.clip();
    if (view.tree && size.treeWidth) drawTree(pen, view.tree, { left: 2, width: size.treeWidth - 8, y, top: Math.max(size.top, y(0)), bottom: Math.min(bottom, y(view.rows.length)), ink: theme.muted, rule: theme.rule });
    const columns = view.columns.map((_, c) => this.x(size, c));
    for (let i = first; i < last; i++) {
      for (let c = 0; c < columns.length; c++) {
        const value = view.value(view.rows[i], c);
        if (value === null || Number.isNaN(value)) continue;
        pen.fillStyle = colours[c](value);
        pen.fillRect(columns[c], y(i), size.column - seam, size.row - seam);
      }
    }
    if (view.numbers && size.column >= 26) this.numbers(pen, size, { first, last, y, columns, theme });
    this.names(pen, size, { first, last, y, theme });
    pen.restore();
    this.heads(pen, size, theme);
  }

  numbers(pen, size, { first, last, y, columns, theme }) {
    const { view } = this;
    pen.font = FONT.replace("12px", "10px");
    Object.assign(pen, { textAlign: "center", textBaseline: "middle" });
    const range = view.kind === "relative" ? 2 : view.limit ?? 1;
    for (let i = first; i < last; i++) {
      for (let c = 0; c < columns.length; c++) {
        const value = view.value(view.rows[i], c);
        if (value === null) continue;
        const far = view.kind === "relative" ? Math.abs(value - 1) : Math.abs(value);
        const strong = far > 0.62 * (view.kind === "relative" ? 1 : range);
        pen.fillStyle = strong ? theme.card : theme.ink;
        pen.fillText(value.toFixed(size.column >= 34 ? 2 : 1), columns[c] + size.column / 2, y(i) + size.row / 2);
      }
    }
  }

  names(pen, size, { first, last, y, theme }) {
    const { view } = this;
    pen.font = FONT;
    Object.assign(pen, { textAlign: "right", textBaseline: "middle" });
    for (let i = first; i < last; i++) {
      const row = view.rows[i];
      const band = view.bands?.(row);
      if (band && i > 0 && band !== view.bands(view.rows[i - 1])) {
        pen.fillStyle = theme.muted;
        pen.fillRect(size.treeWidth, Math.round(y(i)) - 1, size.width - size.treeWidth, 1);
      }
      pen.fillStyle = this.cursor?.[0] === row ? theme.accent : theme.ink;
      pen.fillText(cut(pen, view.names[row], size.nameWidth - 8), size.left - 8, y(i) + size.row / 2);
    }
  }

  heads(pen, size, theme) {
    const { view } = this;
    pen.font = FONT;
    pen.fillStyle = theme.muted;
    if (view.tree && size.treeWidth) {
      Object.assign(pen, { textAlign: "left", textBaseline: "bottom" });
      pen.fillText(String(treeEnd(view.tree)), 2, size.top - 4);
      pen.textAlign = "right";
      pen.fillText("0", size.treeWidth - 6, size.top - 4);
    }
    let first = 0;
    for (const group of view.groups?.length > 1 ? view.groups : []) {
      Object.assign(pen, { textAlign: "left", textBaseline: "top" });
      pen.fillStyle = theme.ink;
      pen.fillText(cut(pen, group.label, group.count * size.column + GAP - 4), this.x(size, first), 2);
      first += group.count;
    }
    const every = size.upright ? Math.ceil(13 / size.column) : 1;
    view.columns.forEach((label, c) => {
      if (c % every) return;
      const x = this.x(size, c) + size.column / 2;
      const marked = this.cursor?.[1] === c;
      pen.fillStyle = marked ? theme.accent : theme.muted;
      pen.save();
      pen.translate(x, size.top - 6);
      if (size.upright) pen.rotate(-Math.PI / 2);
      Object.assign(pen, size.upright ? { textAlign: "left", textBaseline: "middle" } : { textAlign: "center", textBaseline: "bottom" });
      pen.fillText(size.upright ? cut(pen, label, size.labels - 8) : label, 0, size.upright ? 0 : 2);
      pen.restore();
    });
  }
}

function cut(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}

function resize(canvas, width, height) {
  canvas.width = Math.max(1, Math.round(width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
}
