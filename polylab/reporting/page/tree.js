// The hierarchy of tasks: where its branches lie beside rows in its order.

// Branches `{low, high, from: [row, row], depth: [a, b], at}` in rows and distances.
function branches(tree) {
  const leaves = tree.order.length;
  const row = new Float64Array(2 * leaves - 1);
  const height = new Float64Array(2 * leaves - 1);
  tree.order.forEach((task, place) => { row[task] = place + 0.5; });
  return tree.merges.map(([a, b, distance], i) => {
    row[leaves + i] = (row[a] + row[b]) / 2;
    height[leaves + i] = distance;
    return { low: Math.min(row[a], row[b]), high: Math.max(row[a], row[b]), ends: [[row[a], height[a]], [row[b], height[b]]], at: distance };
  });
}

// Few ends of the axis, so that noise never looks like a hierarchy.
function treeEnd(tree) {
  const top = Math.max(...tree.merges.map((merge) => merge[2]), 0);
  return [0.1, 0.25, 0.5, 0.75, 1].find((end) => top <= end) ?? 1;
}

function drawTree(pen, tree, { left, width, y, top, bottom, ink, rule }) {
  const end = treeEnd(tree);
  const x = (distance) => left + width * (1 - distance / end);
  pen.lineWidth = 1;
  pen.strokeStyle = rule;
  for (const share of [0.25, 0.5, 0.75, 1]) line(pen, x(end * share), top, x(end * share), bottom);
  pen.strokeStyle = ink;
  for (const branch of branches(tree)) {
    if (y(branch.high) < top || y(branch.low) > bottom) continue;
    line(pen, x(branch.at), y(branch.low), x(branch.at), y(branch.high));
    for (const [place, depth] of branch.ends) line(pen, x(branch.at), y(place), x(depth), y(place));
  }
}

function line(pen, x0, y0, x1, y1) {
  const crisp = (value) => Math.round(value) + 0.5;
  pen.beginPath();
  pen.moveTo(crisp(x0), crisp(y0));
  pen.lineTo(crisp(x1), crisp(y1));
  pen.stroke();
}
