// What a map does under the pointer, under the keyboard, and on paper.

Object.assign(HeatMap.prototype, {
  place(row) {
    if (this.places?.rows !== this.view.rows) {
      this.places = { rows: this.view.rows, of: new Map(this.view.rows.map((value, i) => [value, i])) };
    }
    return this.places.of.get(row);
  },

  frame(pen, offset) {
    if (!this.cursor) return;
    const { size } = this;
    const [row, c] = this.cursor;
    const y = offset + this.place(row) * size.row;
    if (y < size.top - size.row) return;
    pen.save();
    pen.beginPath();
    pen.rect(0, size.top - 2, size.width, size.height);
    pen.clip();
    pen.lineWidth = 2;
    pen.strokeStyle = inks(false).ink;
    pen.strokeRect(this.x(size, c) - 0.5, y - 0.5, size.column, size.row);
    pen.restore();
  },

  show(cursor, again = false) {
    if (!again && String(cursor) === String(this.cursor)) return;
    this.cursor = cursor;
    this.readout.textContent = cursor ? this.describe(cursor[0], cursor[1]) : this.idle;
    this.readout.classList.toggle("idle", !cursor);
    if (!again) this.draw();
  },

  point(event) {
    if (!this.size) return;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { size, view } = this;
    const row = Math.floor((y - size.top + this.scroll.scrollTop) / size.row);
    const c = view.columns.findIndex((_, i) => x >= this.x(size, i) && x < this.x(size, i) + size.column);
    const inside = y >= size.top && row >= 0 && row < view.rows.length && c >= 0;
    this.show(inside ? [view.rows[row], c] : null);
  },

  enter() {
    if (!this.cursor && this.view?.rows.length && this.scroll.matches(":focus-visible")) {
      this.show([this.view.rows[0], 0]);
    }
  },

  key(event) {
    const rows = this.view?.rows.length;
    if (!rows || event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = this.view.columns.length;
    let [i, c] = this.cursor ? [this.place(this.cursor[0]), this.cursor[1]] : [0, 0];
    const page = Math.max(1, Math.floor((this.size.height - this.size.top) / this.size.row) - 1);
    const moves = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      PageUp: [-page, 0], PageDown: [page, 0], Home: [0, -columns], End: [0, columns],
    };
    if (event.key === "Escape") return this.show(null);
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    if (this.cursor) {
      i = Math.min(rows - 1, Math.max(0, i + move[0]));
      c = Math.min(columns - 1, Math.max(0, c + move[1]));
    }
    this.reveal(i);
    this.show([this.view.rows[i], c]);
  },

  reveal(i) {
    const { size } = this;
    const [top, bottom] = [i * size.row, (i + 1) * size.row];
    const room = size.height - size.top;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (bottom > this.scroll.scrollTop + room) this.scroll.scrollTop = bottom - room + 4;
  },

  jump(event) {
    const box = this.mini.getBoundingClientRect();
    const share = (event.clientY - box.top - this.size.top) / (this.size.height - this.size.top);
    const room = this.size.height - this.size.top;
    this.scroll.scrollTop = share * this.view.rows.length * this.size.row - room / 2;
  },

  // All rows at once, narrow: where in the map one is.
  drawMini() {
    const { size, view } = this;
    if (size.content <= size.height) return;
    this.overview ??= this.allRows();
    const pen = this.mini.getContext("2d");
    const theme = inks(false);
    const height = size.height - size.top;
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, 56, size.height);
    pen.drawImage(this.overview, 4, size.top, 50, height);
    const scale = height / (view.rows.length * size.row);
    pen.strokeStyle = theme.ink;
    pen.lineWidth = 1.5;
    pen.strokeRect(3, size.top + this.scroll.scrollTop * scale, 52, Math.max(6, height * scale));
  },

  allRows() {
    const { view } = this;
    const canvas = el("canvas", { width: view.columns.length, height: view.rows.length });
    const pen = canvas.getContext("2d");
    const colours = columnColours(view, inks(false).name);
    view.rows.forEach((row, i) => {
      for (let c = 0; c < view.columns.length; c++) {
        const value = view.value(row, c);
        if (value === null) continue;
        pen.fillStyle = colours[c](value);
        pen.fillRect(c, i, 1, 1);
      }
    });
    return canvas;
  },

  // Pieces that fit a sheet, so that no row is cut.
  print() {
    this.paper.replaceChildren();
    if (!this.view || !this.view.rows.length) return;
    const size = this.measure(PRINT_WIDTH, true);
    const cursor = this.cursor;
    this.cursor = null;
    for (let first = 0; first < this.view.rows.length; first += PRINT_ROWS) {
      const last = Math.min(this.view.rows.length, first + PRINT_ROWS);
      const height = size.top + (last - first) * size.row + 2;
      const canvas = el("canvas", { role: "img", "aria-label": `${this.label}, rows ${first + 1} to ${last}` });
      canvas.width = 2 * size.width;
      canvas.height = 2 * height;
      canvas.style.width = `${size.width}px`;
      const pen = canvas.getContext("2d");
      pen.setTransform(2, 0, 0, 2, 0, 0);
      this.paint(pen, size, { first, last, offset: size.top - first * size.row, bottom: height, theme: inks(true) });
      this.paper.append(canvas);
    }
    this.cursor = cursor;
  },
});
