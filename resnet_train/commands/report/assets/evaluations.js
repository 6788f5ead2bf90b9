// What resnet-eval found for a run: figures, confusion matrix, calibration, classes, and the worst mistakes.

const CELLS_WITH_TEXT = 20; // classes up to which a confusion matrix has room for its numbers
const LONGEST = 18; // characters of a name beside it; the box under the pointer has all

function showEvaluations() {
  if (!data.evaluations.length) return;
  const title = (found) => `${data.runs[found.run].label} – ${runTitle(data.runs[found.run])} – ${found.name}`;
  const options = data.evaluations.map((found, index) => make("option", { value: index }, title(found)));
  const select = make("select", { "aria-label": "Evaluation", change: show }, ...options);
  const place = make("div");
  begin("evaluations").append(make("div", { class: "choice" }, make("label", {}, "Of", select)), place);
  let draw = () => {};
  function show() {
    const found = data.evaluations[select.value];
    const plots = [];
    const [matrix, most] = confusion(found, plots);
    place.replaceChildren(
      ...figures(found),
      make("div", { class: "two" }, matrix, make("div", {}, calibration(found, plots), most)),
    );
    place.append(...[classes(found), mistakes(found)].filter(Boolean));
    draw = () => {
      for (const plot of plots) plot();
    };
    draw();
  }
  redraws.push(() => draw());
  show();
}

function figures(found) {
  const facts = [
    [
      "accuracy",
      percent(found.accuracy),
      found.interval && `95 % interval ${percent(found.interval[0])} to ${percent(found.interval[1])}`,
    ],
    ["error", percent(found.error), `${whole(found.correct)} of ${whole(found.count)} right`],
    ["top-5", found.top5 == null ? null : percent(found.top5)],
    ["loss", found.loss == null ? null : short(found.loss)],
    ["balanced accuracy", found.balanced_accuracy == null ? null : percent(found.balanced_accuracy)],
    ["macro F1", found.macro_f1 == null ? null : percent(found.macro_f1)],
    ["calibration error", found.calibration_error == null ? null : percent(found.calibration_error)],
  ];
  const step = found.step ? ` (step ${whole(found.step)})` : "";
  const how = [
    `${found.split} split`,
    `checkpoint ${found.checkpoint}${step}`,
    `test-time augmentation: ${found.tta}`,
    ...(found.runs_on ? [`computed on ${found.runs_on}`] : []),
  ].join(", ");
  return [
    make("p", { class: "quiet" }, how),
    make(
      "dl",
      { class: "facts" },
      ...facts
        .filter(([, value]) => value != null)
        .map(([name, value, small]) =>
          make("div", {}, make("dt", {}, name), make("dd", {}, value, small ? make("small", {}, small) : null)),
        ),
    ),
  ];
}

// ---------------------------------------------------------------------------------------------------------- confusion

/** Rows are labels, columns predictions; the file has [column, count, column, count, ...] for each row. */
function dense(found) {
  const size = found.classes.length;
  return found.confusion.map((row) => {
    const counts = new Array(size).fill(0);
    for (let index = 0; index < row.length; index += 2) counts[row[index]] = row[index + 1];
    return counts;
  });
}

function confusion(found, plots) {
  if (!found.confusion) return [null, null];
  const counts = dense(found);
  const totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
  const share = (row, column) => (totals[row] ? counts[row][column] / totals[row] : 0);
  const size = counts.length;
  const only = make("input", { type: "checkbox", checked: size > CELLS_WITH_TEXT, change: draw });
  const place = make("div", {
    class: "plot matrix",
    role: "img",
    "aria-label": "Confusion matrix; the pairs confused most are in the table below",
  });
  const pairs = counts.flatMap((row, label) =>
    row
      .map((count, prediction) => ({ label, prediction, count }))
      .filter((pair) => pair.label !== pair.prediction && pair.count),
  );
  pairs.sort((one, other) => other.count - one.count);
  const number = { title: "images", number: true, value: (pair) => pair.count };
  const most = table(
    "Classes confused most",
    [
      { title: "label", value: (pair) => found.classes[pair.label] },
      { title: "taken for", value: (pair) => found.classes[pair.prediction] },
      number,
      {
        title: "of the label",
        number: true,
        value: (pair) => share(pair.label, pair.prediction),
        show: (pair) => percent(share(pair.label, pair.prediction), 1),
      },
    ],
    pairs.slice(0, 20),
    { sort: number, descending: true, none: "no mistakes" },
  );
  function draw() {
    const names = found.classes.map((name) => plain(name.length > LONGEST ? name.slice(0, LONGEST - 1) + "…" : name));
    const unique = new Set(names).size === size ? names : names.map((name, index) => `${name} (${index})`);
    const z = counts.map((row, label) =>
      row.map((_, prediction) => (only.checked && label === prediction ? null : share(label, prediction))),
    );
    // From the ground to one hue: what is nothing disappears, in both themes.
    const scale = [
      [0, colour("ground")],
      [0.15, colour("heat-1")],
      [0.5, colour("heat-2")],
      [1, colour("heat-3")],
    ];
    const few = size <= 30;
    // As categories, names are thinned where they have no room, and appear when one zooms in.
    const axis = {
      type: "category",
      ...(few ? { dtick: 1 } : {}),
      tickangle: few ? -45 : 0,
      showgrid: false,
      zeroline: false,
      constrain: "domain",
    };
    const told = (label, prediction) => {
      const part = `${whole(counts[label][prediction])} of ${whole(totals[label])}`;
      const names = `${found.classes[label]} taken for ${found.classes[prediction]}`;
      return plain(`${names}: ${part} (${percent(share(label, prediction), 1)})`);
    };
    const text = counts.map((row, label) => row.map((_, prediction) => told(label, prediction)));
    const written = counts.map((row, label) =>
      row.map((count, prediction) => (count && !(only.checked && label === prediction) ? whole(count) : "")),
    );
    Plotly.react(
      place,
      [
        {
          type: "heatmap",
          x: unique,
          y: unique,
          z,
          colorscale: scale,
          zmin: 0,
          showscale: !few || size > CELLS_WITH_TEXT,
          hovertext: text,
          hovertemplate: "%{hovertext}<extra></extra>",
          hoverongaps: false,
          text: written,
          texttemplate: size <= CELLS_WITH_TEXT ? "%{text}" : undefined,
          textfont: { size: size > 12 || place.clientWidth < 480 ? 9 : 11 },
          xgap: few ? 1 : 0,
          ygap: few ? 1 : 0,
          colorbar: { thickness: 10, outlinewidth: 0, tickformat: ".1~%" },
        },
      ],
      layout({
        xaxis: { ...axis, title: { text: "prediction" } },
        yaxis: { ...axis, tickangle: 0, title: { text: "label" }, autorange: "reversed", scaleanchor: "x" },
      }),
      PLOT_OPTIONS,
    );
  }
  plots.push(draw);
  return [
    make(
      "div",
      {},
      make(
        "div",
        { class: "head" },
        make("h3", {}, "Confusion matrix"),
        make("label", { class: "quiet" }, only, " mistakes only"),
      ),
      place,
    ),
    make("div", { class: "some gap" }, make("h3", {}, "Confused most"), most.element),
  ];
}

// -------------------------------------------------------------------------------------------------------- calibration

function calibration(found, plots) {
  if (!found.reliability) return null;
  const place = make("div", {
    class: "plot",
    role: "img",
    "aria-label": "Reliability diagram: accuracy by confidence",
  });
  const bins = found.reliability.filter((bin) => bin.count > 0 && bin.accuracy != null);
  const all = found.reliability.reduce((sum, bin) => sum + bin.count, 0);
  function draw() {
    const middle = bins.map((bin) => (bin.low + bin.high) / 2);
    const bars = {
      type: "bar",
      x: middle,
      y: bins.map((bin) => bin.accuracy),
      width: bins.map((bin) => bin.high - bin.low),
      marker: { color: transparent(colour("accent"), 0.55), line: { color: colour("accent"), width: 1 } },
      customdata: bins.map((bin) => [bin.confidence, bin.count, bin.count / all]),
      hovertemplate:
        "accuracy %{y:.1%}<br>mean confidence %{customdata[0]:.1%}<br>" +
        "%{customdata[1]:,} images (%{customdata[2]:.1%})<extra></extra>",
    };
    const perfect = {
      type: "scatter",
      mode: "lines",
      x: [0, 1],
      y: [0, 1],
      line: { color: colour("quiet"), dash: "dash", width: 1.5 },
      hoverinfo: "skip",
    };
    const means = {
      type: "scatter",
      mode: "markers",
      x: bins.map((bin) => bin.confidence),
      y: bins.map((bin) => bin.accuracy),
      marker: { color: colour("ink"), size: bins.map((bin) => 5 + 9 * Math.sqrt(bin.count / all)) },
      hoverinfo: "skip",
    };
    Plotly.react(
      place,
      [bars, perfect, means],
      layout({
        xaxis: { title: { text: "confidence" }, range: [0, 1], tickformat: ".0%" },
        yaxis: { title: { text: "accuracy" }, range: [0, 1.02], tickformat: ".0%" },
        bargap: 0,
        hovermode: "closest",
      }),
      PLOT_OPTIONS,
    );
  }
  plots.push(draw);
  return make(
    "div",
    {},
    make("h3", {}, "Reliability"),
    make(
      "p",
      { class: "quiet" },
      "Below the dashed line the network is surer than it is right. Dots: mean confidence, larger for more images.",
    ),
    place,
  );
}

// ------------------------------------------------------------------------------------------------------------ classes

function classes(found) {
  if (!found.per_class) return null;
  const withBar = (value) =>
    value == null
      ? "–"
      : make(
          "span",
          {},
          percent(value, 1),
          make("span", { class: "track" }, make("span", { class: "bar", style: `width: ${100 * value}%` })),
        );
  const f1 = { title: "F1", number: true, value: (row) => row.f1, show: (row) => withBar(row.f1) };
  const rate = (name) => ({
    title: name,
    number: true,
    value: (row) => row[name],
    show: (row) => percent(row[name], 1),
  });
  const made = table(
    "Classes",
    [
      { title: "class", value: (row) => row.name },
      rate("precision"),
      rate("recall"),
      f1,
      { title: "images", number: true, value: (row) => row.support, show: (row) => whole(row.support) },
    ],
    found.per_class,
    { sort: f1, none: "no class has these words" },
  );
  return make(
    "div",
    { class: "gap" },
    make(
      "div",
      { class: "head" },
      make("h3", {}, "Classes, weakest first"),
      filterField("Filter classes", found.per_class, made.filter),
    ),
    made.element,
  );
}

function mistakes(found) {
  if (!found.sheet && !found.mistakes.length) return null;
  const sure = { title: "confidence", number: true, value: (row) => row[3], show: (row) => percent(row[3]) };
  const rows = table(
    "Worst mistakes",
    [
      { title: found.mistakes_by, value: (row) => row[0] },
      { title: "label", value: (row) => row[1] },
      { title: "prediction", value: (row) => row[2] },
      sure,
    ],
    found.mistakes,
    { sort: sure, descending: true },
  );
  const sheet = found.sheet
    ? make("img", { class: "sheet", src: found.sheet, alt: "The worst mistakes; the table beside it names them" })
    : null;
  return make(
    "div",
    { class: "gap" },
    make("h3", {}, "Worst mistakes"),
    make("div", { class: "two" }, sheet && make("div", {}, sheet), found.mistakes.length ? rows.element : null),
  );
}
