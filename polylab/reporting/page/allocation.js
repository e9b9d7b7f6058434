// Which skills each task uses: by step, layer and head.

function decoded(allocation) {
  const top = allocation.bits === 16 ? 65535 : 255;
  const known = new Map();
  return (place, kind) => {
    const key = `${place} ${kind}`;
    if (!known.has(key)) {
      const buffer = bytes(allocation.looks[place][kind]);
      known.set(key, allocation.bits === 16 ? new Uint16Array(buffer) : new Uint8Array(buffer));
    }
    const values = known.get(key);
    return (i) => values[i] / top;
  };
}

class Allocation {
  constructor(data) {
    Object.assign(this, data);
    this.read = decoded(data);
    const size = this.tasks.length * this.skills;
    this.offsets = [];
    let next = (1 + this.heads) * size;
    for (const heads of this.splits) {
      this.offsets.push(next);
      next += heads * size;
    }
  }

  // Cell (task, column) of a look; layer -1 is the aligned mean, head -1 all heads.
  values(look, kind, layer, head) {
    const [at, n, S] = [this.read(look, kind), this.tasks.length, this.skills];
    if (layer < 0) return (t, k) => at((head + 1) * n * S + t * S + k);
    const [first, heads, perm] = [this.offsets[layer], this.splits[layer], this.perms[layer]];
    if (head >= 0) return (t, k) => at(first + (t * heads + head) * S + perm[head][k]);
    return (t, k) => {
      let sum = 0;
      for (let q = 0; q < heads; q++) sum += at(first + (t * heads + q) * S + perm[q][k]);
      return sum / heads;
    };
  }

  // A column's own number within one layer and head; null where it stands for several.
  own(layer, head, k) {
    if (layer < 0 || (head < 0 && this.splits[layer] > 1)) return null;
    return this.perms[layer][Math.max(0, head)][k];
  }

  lookName(place) {
    const { tag, step } = this.looks[place];
    if (step === null) return "end of the run";
    return tag.startsWith("step") ? `step ${step}` : `${tag} (step ${step})`;
  }
}

function allocationSection(data, categories) {
  const all = new Allocation(data);
  const state = { look: all.looks.length - 1, layer: -1, head: -1, kind: "weights", order: all.tree ? "hierarchy" : "name", text: "", numbers: false };
  const map = new HeatMap({ label: "Allocation map, tasks by skills", describe: (t, k) => described(all, state, t, k) });
  const orders = [...(all.tree ? [["hierarchy", "hierarchy"]] : []), ["name", "name"], ["given", "as trained"], ...(Object.keys(categories).length ? [["category", "category"]] : [])];
  const legend = el("div");
  const legends = legendNodes();
  const about = el("p", { class: "say" });
  const step = el("span", {}, all.lookName(state.look));
  const slider = el("input", { type: "range", min: 0, max: all.looks.length - 1, value: state.look, "aria-label": "Step", oninput: () => { state.look = Number(slider.value); update(); } });
  const heads = choice("Head", [], (value) => { state.head = Number(value); update(); });
  const layers = [[-1, all.layers.length === 1 ? "the only layer" : "aligned mean"], ...all.layers.map((name, i) => [i, name])];
  const layer = choice("Layer", layers, (value) => { state.layer = Number(value); fillHeads(); update(); });
  const kinds = [["weights", "weight × skills"], ...(all.gated ? [["gates", "gate"]] : []), ...(all.looks.length > 1 ? [["change", "change since the first look"]] : [])];
  const gallery = galleryNode(all, state, () => order(all, state, categories), (place) => {
    layer.select.value = place;
    layer.select.dispatchEvent(new Event("change"));
    layer.select.focus();
  });

  function fillHeads() {
    const count = state.layer < 0 ? all.heads : all.splits[state.layer];
    const most = Math.max(1, ...all.splits);
    const names = [[-1, most > 1 ? "all (aligned mean)" : "the only one"], ...(most > 1 ? Array.from({ length: count }, (_, q) => [q, `head ${q}`]) : [])];
    heads.select.replaceChildren(...names.map(([value, text]) => el("option", { value }, text)));
    if (state.head >= count) state.head = -1;
    heads.select.value = state.head;
    heads.node.hidden = most === 1;
  }

  let rows = { key: null };
  function update() {
    step.textContent = all.lookName(state.look);
    slider.setAttribute("aria-valuetext", step.textContent);
    const key = `${state.order}|${state.text}`;
    if (rows.key !== key) rows = { key, list: order(all, state, categories) };
    map.set(allocationView(all, state, rows.list, categories));
    legend.replaceChildren(legends[state.kind]);
    about.textContent = aboutView(all, state);
    gallery.update();
  }

  fillHeads();
  const controls = el("div", { class: "controls" },
    all.looks.length > 1 ? el("label", { class: "wide" }, el("span", {}, "Look: ", step), slider) : null,
    layer.node, heads.node,
    choice("Show", kinds, (value) => { state.kind = value; update(); }).node,
    choice("Order of tasks", orders, (value) => { state.order = value; update(); }).node,
    searchField("Tasks", (text) => { state.text = text; update(); }, "part of a name").node,
    tick("numbers", (on) => { state.numbers = on; update(); }));
  const words = all.words.map((text) => el("p", { class: "say" }, text));
  const node = el("div", {}, controls, map.node, legend, about, words, gallery.node);
  return { node, draw: update };
}

function order(all, state, categories) {
  const keep = matcher(state.text);
  const places = all.tasks.map((_, i) => i);
  const name = (a, b) => all.tasks[a].localeCompare(all.tasks[b], "en", { numeric: true });
  const category = (t) => categories[all.tasks[t]] ?? "";
  const sorted = {
    hierarchy: () => all.tree.order,
    given: () => places,
    name: () => places.sort(name),
    category: () => places.sort((a, b) => category(a).localeCompare(category(b)) || name(a, b)),
  }[state.order]();
  return sorted.filter((t) => keep(`${all.tasks[t]} ${category(t)}`));
}

function cellOf(all, state) {
  const S = all.skills;
  if (state.kind === "gates") return all.values(state.look, "gates", state.layer, state.head);
  const now = all.values(state.look, "weights", state.layer, state.head);
  if (state.kind === "weights") return (t, k) => now(t, k) * S;
  const start = all.values(0, "weights", state.layer, state.head);
  return (t, k) => (now(t, k) - start(t, k)) * S;
}

function allocationView(all, state, rows, categories) {
  const whole = state.order === "hierarchy" && rows.length === all.tasks.length;
  return {
    rows,
    names: all.tasks,
    columns: Array.from({ length: all.skills }, (_, k) => String(all.own(state.layer, state.head, k) ?? k)),
    value: cellOf(all, state),
    kind: { weights: "relative", gates: "share", change: "signed" }[state.kind],
    limit: 1,
    tree: whole && all.tree.merges.length ? all.tree : null,
    bands: state.order === "category" ? (t) => categories[all.tasks[t]] ?? "" : null,
    numbers: state.numbers,
  };
}

function described(all, state, t, k) {
  const digits = all.bits === 16 ? 4 : 2;
  const own = all.own(state.layer, state.head, k);
  const skill = own === null || own === k ? `skill ${k}` : `skill ${own} (column ${k} of the aligned maps)`;
  const weight = all.values(state.look, "weights", state.layer, state.head)(t, k);
  const parts = [all.tasks[t], skill, `weight ${weight.toFixed(digits)}`, `${(weight * all.skills).toFixed(2)} × uniform`];
  if (all.gated) parts.push(`gate ${all.values(state.look, "gates", state.layer, state.head)(t, k).toFixed(digits)}`);
  if (state.kind === "change") {
    const start = all.values(0, "weights", state.layer, state.head)(t, k);
    parts.push(`weight at the first look ${start.toFixed(digits)}`);
  }
  return parts.join(" · ");
}

function legendNodes() {
  return {
    gates: scaleNode("share", "gate: 0 = off, 1 = on"),
    change: scaleNode("signed", "change of weight × number of skills since the first look"),
    weights: scaleNode("relative", "weight × number of skills: 0 = not used, 1 = uniform"),
  };
}

function aboutView(all, state) {
  const look = all.looks[state.look];
  const when = `Look: ${all.lookName(state.look)}. `;
  const agree = look.agreement === null ? "" : ` Agreement of layers and heads at this look: ${look.agreement.toFixed(2)} (1 = alike, near 0 = nothing in common).`;
  const flat = all.tree && !all.tree.merges.length;
  const tree = flat ? " There is no hierarchy: all tasks are routed alike." : all.tree && state.order === "hierarchy" ? " The tree joins tasks by the share of mixing weight that they do not have in common, at the last look." : "";
  if (state.layer >= 0) return `${when}Layer ${all.layers[state.layer]}; its columns stand in the aligned order, under the layer's own numbers.${tree}`;
  return `${when}Mean over layers${state.head >= 0 ? ` of head ${state.head}` : " and heads"} after their skills were matched: skills of different layers and heads are exchangeable. The matching is that of the last look at every step.${agree}${tree}`;
}
