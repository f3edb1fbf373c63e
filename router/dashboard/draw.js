// What touches the document.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** Text, where it has changed: whoever has marked some of it keeps it marked. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A figure into <data id>: its text for people, its value for programs. */
export function put(id, value, write) {
  fill($(id), value, write);
}

/** The rows of a table's body: one for each of `items`, by `key`; `cells` makes a row's cells, `update` fills them. */
export function rows(table, items, key, cells, update) {
  const body = $(table).tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const name = key(item);
    const row = old.get(name) ?? newRow(name, cells(item));
    old.delete(name);
    update(row.cells, item);
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
  old.forEach((row) => row.remove());
}

function newRow(name, cells) {
  const row = document.createElement("tr");
  row.dataset.key = name;
  row.append(...cells);
  return row;
}

export function cell(kind, className, ...children) {
  const made = document.createElement(kind);
  made.className = className;
  if (kind === "th") made.scope = "row";
  made.append(...children);
  return made;
}

/** A cell with one figure. */
export function figure(className = "number") {
  return cell("td", className, document.createElement("data"));
}

export function fill(data, value, write) {
  data.value = value ?? "";
  say(data, write(value));
}

/** A bar from empty to full, and its figure beside it. */
export function meter(label) {
  const bar = cell("div", "meter", document.createElement("span"));
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", label);
  bar.setAttribute("aria-valuemax", "1");
  return bar;
}

export function fillMeter(bar, share, isHigh = false) {
  bar.setAttribute("aria-valuenow", (share ?? 0).toFixed(3));
  bar.classList.toggle("is-high", isHigh);
  bar.firstChild.style.width = `${(share ?? 0) * 100}%`;
}

/** A line through values, from 0 to the largest; what is not known yet (null) is left out. */
export function spark(id, values) {
  const svg = $(id);
  const known = values.slice(values.findIndex((value) => value !== null));
  const top = Math.max(...known.map((value) => value ?? 0)) || 1;
  const right = Math.max(known.length - 1, 1);
  const points = known
    .map((value, index) => [index, value])
    .filter(([, value]) => value !== null)
    .map(([index, value]) => `${((index / right) * 100).toFixed(2)},${(38 - (value / top) * 34).toFixed(2)}`);
  if (!svg.firstChild) prepare(svg);
  const path = points.length > 1 ? `M${points.join("L")}` : "";
  const [area, line] = svg.children;
  line.setAttribute("d", path);
  area.setAttribute("d", path && `${path}V40H${points[0].split(",")[0]}Z`);
}

function prepare(svg) {
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  for (const kind of ["area", "line"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", kind);
    svg.append(path);
  }
}
