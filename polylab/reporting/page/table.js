// A table that sorts by its headings and filters by words and by bounds (`loss<0.5`).

const SHOWN_ROWS = 300;

function dataTable({ label, columns, rows, intervals = null, marks = null, pick = null, sort = null }) {
  const numeric = columns.map((_, c) => {
    const known = rows.map((row) => row[c]).filter((value) => value !== null && value !== "");
    return known.length > 0 && known.every((value) => typeof value === "number");
  });
  const sayers = columns.map((_, c) => (numeric[c] ? sayer(rows.map((row) => row[c]), { counts: !intervals?.some((row) => row[c]) }) : say));
  // a bar only where all of a column's intervals lie on the same scale
  const barred = columns.map((_, c) => intervals !== null && intervals.every((row) => !row[c] || (row[c][0] >= 0 && row[c][1] <= 1)));
  const state = { column: sort?.column ?? -1, down: sort?.down ?? false, text: "", all: false };
  const body = el("tbody");
  const built = new Map();
  const count = el("span", { class: "count", "aria-live": "polite" });
  const more = el("button", { class: "plain", type: "button", onclick: () => { state.all = true; fill(); } }, "Show all rows");
  const heads = columns.map((name, c) => {
    const button = el("button", { type: "button", onclick: () => sortBy(c) }, name);
    return el("th", { scope: "col", class: numeric[c] ? "num" : null, "aria-sort": "none", "data-name": name }, button);
  });
  const boxes = pick ? [el("th", { scope: "col", class: "pick" }, el("span", { class: "count", style: "padding:9px 14px" }, pick.label))] : [];
  const node = el("div", { class: columns.length > 9 ? "table broad" : "table", tabindex: "0", role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, boxes, heads)), body));
  const filter = searchField("Filter rows", (text) => { state.text = text; fill(); }, "words, or score<0.5");

  function sortBy(c) {
    // the best of a score first, names from a to z
    state.down = state.column === c ? !state.down : numeric[c];
    state.column = c;
    fill();
  }

  function compare(a, b) {
    const [one, other] = [rows[a][state.column], rows[b][state.column]];
    const empty = (value) => value === null || value === "";
    if (empty(one) || empty(other)) return empty(one) - empty(other) || a - b;
    const order = typeof one === "number" && typeof other === "number"
      ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
    return (state.down ? -order : order) || a - b;
  }

  function places() {
    const keep = rowFilter(columns, state.text);
    const found = rows.map((_, i) => i).filter((i) => keep(rows[i]));
    return state.column < 0 ? found : found.sort(compare);
  }

  function fill() {
    heads.forEach((head, c) => head.setAttribute("aria-sort",
      c !== state.column ? "none" : state.down ? "descending" : "ascending"));
    const found = places();
    const shown = state.all ? found : found.slice(0, SHOWN_ROWS);
    body.replaceChildren(...shown.map(rowNode));
    more.hidden = shown.length === found.length;
    const part = shown.length < found.length ? ` · the first ${shown.length} are shown` : "";
    count.textContent = `${say(found.length)} of ${say(rows.length)} rows${part}`;
  }

  function rowNode(i) {
    if (!built.has(i)) {
      const cells = columns.map((_, c) => cellNode(rows[i][c], numeric[c] && sayers[c], intervals?.[i][c], barred[c]));
      if (pick) cells.unshift(el("td", { class: "pick" }, pickBox(i)));
      built.set(i, el("tr", { class: [marks?.[i], pick?.chosen.has(i) ? "chosen" : null].filter(Boolean).join(" ") || null, "data-row": i }, cells));
    }
    return built.get(i);
  }

  function pickBox(i) {
    const box = el("input", { type: "checkbox", "aria-label": pick.name(i), onchange: () => pick.toggle(i, box.checked) });
    box.checked = pick.chosen.has(i);
    return box;
  }

  function mark() {
    for (const [i, row] of built) {
      row.classList.toggle("chosen", pick.chosen.has(i));
      row.querySelector("input").checked = pick.chosen.has(i);
    }
  }

  let before = false;
  prints.push({
    before: () => {
      before = state.all;
      if (!node.isConnected || node.closest("details:not([open])")) return;
      state.all = true;
      fill();
    },
    after: () => {
      if (state.all === before) return;
      state.all = before;
      fill();
    },
  });
  fill();
  return { node, mark, controls: [filter.node, count, more] };
}

function cellNode(value, sayNumber, interval, hasBar) {
  if (!sayNumber) return el("td", { class: String(value ?? "").length > 40 ? "long" : null }, value === "" ? "" : say(value));
  const cell = el("td", { class: "num" }, sayNumber(value));
  if (!interval) return cell;
  const [low, high] = interval;
  cell.append(el("span", { class: "sure" }, `${sayNumber(low)} – ${sayNumber(high)}`));
  if (hasBar) {
    cell.append(el("span", { class: "bar", "aria-hidden": "true" },
      el("i", { style: `left:${100 * low}%;width:${Math.max(1, 100 * (high - low))}%` }),
      el("b", { style: `left:calc(${100 * value}% - 1px)` })));
  }
  return cell;
}

function rowFilter(columns, text) {
  const bounds = [];
  const words = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const parts = /^(.+?)(<=|>=|<|>|=)(.+)$/.exec(word);
    const column = parts ? columns.indexOf(parts[1]) : -1;
    if (column >= 0) bounds.push([column, parts[2], parts[3]]);
    else words.push(word);
  }
  const named = matcher(words.join(" "));
  const holds = (value, sign, given) => {
    const bound = Number(given);
    if (sign === "=") return Number.isFinite(bound) && typeof value === "number" ? value === bound : String(value) === given;
    if (typeof value !== "number" || !Number.isFinite(bound)) return false;
    return { "<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound }[sign];
  };
  return (row) => bounds.every(([c, sign, given]) => holds(row[c], sign, given)) &&
    named(row.filter((value) => value !== null).join(" "));
}
