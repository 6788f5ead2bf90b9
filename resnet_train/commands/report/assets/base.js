// What every section uses: the data, elements, numbers, the theme, tables. Text of runs reaches the page by text nodes
// alone, so that nothing in it is ever markup.

const data = JSON.parse(document.getElementById("data").textContent);
const metric = data.metric;
const COLOURS = 8;
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon"];

const find = (id) => document.getElementById(id);

/** An element with attributes (functions become listeners) and children; strings become text. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "circle", "line", "path", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Plotly reads texts as a little HTML: this keeps them texts. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// ------------------------------------------------------------------------------------------------------------ numbers

const fixed = (value, digits) =>
  value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const percent = (value, digits = 2) => (value == null ? "–" : fixed(100 * value, digits) + " %");
const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en-GB"));
const short = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
const score = (value) => ({ percent, duration, number: short })[metric.kind](value);

function scoreAndDeviation(mean, sd) {
  if (mean == null || sd == null) return score(mean);
  return metric.kind === "percent"
    ? `${fixed(100 * mean, 2)} ± ${fixed(100 * sd, 2)} %`
    : `${score(mean)} ± ${score(sd)}`;
}

/** 3725 to "1:02:05", as in the terminal. */
function duration(seconds) {
  if (seconds == null) return "–";
  const all = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
}

/** The smallest and the largest of any number of values. */
const extent = (values) =>
  values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

const many = (number, one, more = one + "s") => `${whole(number)} ${number === 1 ? one : more}`;

// -------------------------------------------------------------------------------------------------------------- theme

const colours = new Map(); // of the theme of the moment: asking the browser for one costs a layout of the page

/** The colour behind a custom property. */
function colour(name) {
  if (!colours.has(name)) {
    document.body.style.setProperty("outline-color", `var(--${name})`);
    colours.set(name, getComputedStyle(document.body).outlineColor);
    document.body.style.removeProperty("outline-color");
  }
  return colours.get(name);
}

const groupColour = (number) => colour(`group-${number % COLOURS}`);
const transparent = (rgb, alpha) => rgb.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);

const redraws = []; // what draws with colours of its own: called when the theme changes

function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  colours.clear();
  for (const redraw of redraws) redraw();
}

function startTheme() {
  const select = find("theme");
  const stored = { get: () => null, set: () => {} };
  try {
    // storage may be forbidden for pages from the disk
    stored.get = () => localStorage.getItem("resnet-report-theme");
    stored.set = (theme) => localStorage.setItem("resnet-report-theme", theme);
    select.value = [...select.options].find((option) => option.value === stored.get())?.value ?? "system";
  } catch {
    select.value = "system";
  }
  const apply = () => setTheme(select.value.toLowerCase());
  select.addEventListener("change", () => {
    try {
      stored.set(select.value);
    } catch {
      /* it lasts as long as the page */
    }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", apply);
  apply();
}

// ------------------------------------------------------------------------------------------------------------- pieces

/** The mark of a configuration: its colour and, for those who do not see colours, its shape. */
function swatch(number) {
  const path = {
    circle: "M7 1a6 6 0 1 0 .01 0z",
    square: "M2 2h10v10H2z",
    diamond: "M7 0l7 7-7 7-7-7z",
    "triangle-up": "M7 1l7 12H0z",
    cross: "M5 1h4v4h4v4H9v4H5V9H1V5h4z",
    "triangle-down": "M7 13L0 1h14z",
    star: "M7 0l2 5h5l-4 3.3L11.500 14 7 10.600 2.500 14 4 8.300 0 5h5z",
    hexagon: "M4 1h6l4 6-4 6H4L0 7z",
  }[SHAPES[number % SHAPES.length]];
  return make(
    "svg",
    { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true", style: `fill: var(--group-${number % COLOURS})` },
    make("path", { d: path }),
  );
}

/** The title of a section, with what stands beside it; the section appears in the navigation. */
function begin(id, ...beside) {
  const section = find(id);
  const title = section.dataset.title;
  section.append(make("div", { class: "head" }, make("h2", {}, title), ...beside));
  find("nav").append(make("a", { href: "#" + id }, title));
  return section;
}

/** A field for words of which all have to occur: `show` is called with a test of a text. None for a few rows. */
function filterField(label, rows, show) {
  if (rows.length < 4) return null;
  const read = (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    show((text) => words.every((word) => text.toLowerCase().includes(word)));
  };
  return make("input", { type: "search", placeholder: label, "aria-label": label, input: read });
}

/** Compare as people do: numbers by size, written as 0.1 or 1e-5, and "resnet9" before "resnet20". */
function compare(one, other) {
  const difference = one === "" || other === "" ? NaN : Number(one) - Number(other);
  if (!Number.isNaN(difference)) return difference;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

/**
 * A table that sorts by the heads of its columns. A column has a `title`, `value(row)` to sort by, and where that is
 * not what is shown `show(row)`, a text or an element; `number` aligns to the right, and begins with the largest.
 * Returns the element and `filter(test)`, which hides rows whose text does not pass.
 */
function table(
  label,
  columns,
  rows,
  { sort = null, descending = false, rowClass = () => null, none = "nothing to show" } = {},
) {
  const shown = (column, row) => (column.show ? column.show(row) : (column.value(row) ?? "–"));
  const lines = rows.map((row) => {
    const cells = columns.map((column) =>
      make(
        "td",
        { class: [column.number ? "number" : "", column.class ?? ""].join(" ").trim() || null },
        shown(column, row),
      ),
    );
    const element = make("tr", { class: rowClass(row) }, ...cells);
    return { row, element, text: element.textContent };
  });
  const body = make("tbody", {}, ...lines.map((line) => line.element));
  const nothing = make("p", { class: "none", hidden: rows.length > 0 }, none);
  const heads = columns.map((column) => {
    const content = column.value
      ? make("button", { type: "button", class: "sort", click: () => by(column) }, column.title)
      : column.title;
    return make("th", { scope: "col", class: column.number ? "number" : null }, content, column.below);
  });
  let current = sort;
  function order() {
    lines.sort((one, other) => {
      const [a, b] = [current.value(one.row), current.value(other.row)];
      if (a == null || b == null) return (a == null) - (b == null);
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...lines.map((line) => line.element));
    columns.forEach((column, index) => {
      if (column === current) heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heads[index].removeAttribute("aria-sort");
    });
  }
  function by(column) {
    descending = current === column ? !descending : Boolean(column.number);
    current = column;
    order();
  }
  if (current) order();
  const grid = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  const element = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, grid, nothing);
  const filter = (test) => {
    for (const line of lines) line.element.hidden = !test(line.text);
    nothing.hidden = lines.some((line) => !line.element.hidden);
  };
  return { element, filter };
}
