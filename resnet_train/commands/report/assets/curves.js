// Curves of the chosen runs, drawn by plotly. A colour is a configuration, a dash is a split. Seeds are gathered into
// their mean and a band of ± one standard deviation, computed here of the runs that are ticked.

const CHARTS = [
  { title: "Loss", tag: "loss", log: true },
  { title: "Accuracy", tag: "accuracy", percent: true },
  { title: "Learning rate", tag: "lr" },
  { title: "Gradient norm", tag: "gradient_norm", log: true },
];
const SPLITS = { train: "dot", val: "dash", test: "solid" }; // the later ones are drawn over the earlier
const MOST_DRAWN = 6; // configurations that are ticked at first: more lines are hard to tell apart
const MOST_IN_ONE_BOX = 14; // lines that the box under the pointer names together

const PLOT_OPTIONS = {
  displaylogo: false,
  responsive: true,
  plotlyServerURL: "",
  showLink: false,
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

const view = {
  x: "epoch",
  part: "all",
  seeds: "band",
  log: false,
  splits: new Set(Object.keys(SPLITS)),
  chosen: new Set(),
};

/** What all charts have in common; colours are those of the theme. */
function layout(more = {}) {
  const axis = {
    gridcolor: colour("grid"),
    zerolinecolor: colour("line"),
    linecolor: colour("line"),
    automargin: true,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    font: { color: colour("quiet"), size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 48, r: 12, t: 28, b: 40 },
    hoverlabel: {
      bgcolor: colour("raised"),
      bordercolor: colour("line"),
      font: { color: colour("ink") },
      namelength: -1,
      align: "left",
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("ink") },
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

const tagsOf = (chart) =>
  ({ lr: [["lr", "solid"]], gradient_norm: [["gradient_norm", "solid"]] })[chart.tag] ??
  Object.entries(SPLITS)
    .filter(([split]) => view.splits.has(split))
    .map(([split, dash]) => [`${chart.tag}/${split}`, dash]);

/** Mean and sample standard deviation at each x of the runs that were measured there. */
function gather(runs, tag, xs) {
  const found = { x: [], mean: [], sd: [], n: [] };
  xs.forEach((x, index) => {
    const values = runs.map((run) => run.curves[tag]?.[index]).filter((value) => value != null);
    if (!values.length) return;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    found.x.push(x);
    found.mean.push(mean);
    found.sd.push(values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0);
    found.n.push(values.length);
  });
  return found;
}

/** The traces of one configuration for one tag. */
function tracesOf(set, number, tag, dash, chart) {
  const runs = set.runs.filter((index) => view.chosen.has(index)).map((index) => data.runs[index]);
  const xs = set.grids[set.grid[tag]]?.[view.x];
  if (!runs.length || !xs) return [];
  const [stroke, split] = [groupColour(number), tag.includes("/") ? tag.split("/")[1] + " " : ""];
  const format = chart.percent ? ".2%" : ".4~g";
  // Few points are evaluations, which are marked with the shape of the configuration.
  const style = {
    type: "scatter",
    mode: xs.length <= 30 ? "lines+markers" : "lines",
    line: { color: stroke, dash, width: dash === "dot" ? 1.3 : 2 },
    marker: { color: stroke, size: 6, symbol: SHAPES[number % SHAPES.length] },
  };
  if (view.seeds === "lines" || runs.length === 1) {
    return runs
      .filter((run) => run.curves[tag])
      .map((run) => ({
        ...style,
        x: xs,
        y: run.curves[tag],
        opacity: runs.length > 1 || dash === "dot" ? 0.7 : 1,
        name: plain(`${split}${set.label}`),
        meta: [split, plain(set.label + (run.seed == null ? "" : `, seed ${run.seed}`))],
        hovertemplate: `%{y:${format}}  %{meta[0]}`,
      }));
  }
  const { x, mean, sd, n } = gather(runs, tag, xs);
  const edge = (sign) => mean.map((value, index) => value + sign * sd[index]);
  const low = view.log && chart.log ? edge(-1).map((value, index) => (value > 0 ? value : mean[index])) : edge(-1);
  const band = {
    type: "scatter",
    mode: "lines",
    x: [...x, ...[...x].reverse()],
    y: [...edge(1), ...low.reverse()],
    fill: "toself",
    fillcolor: transparent(stroke, 0.2),
    line: { width: 0 },
    hoverinfo: "skip",
    name: "band",
  };
  const line = {
    ...style,
    opacity: dash === "dot" ? 0.7 : 1,
    x,
    y: mean,
    name: plain(`${split}${set.label}`),
    customdata: sd.map((value, index) => [value, n[index]]),
    meta: [split, plain(set.label)],
    hovertemplate: `%{y:${format}} ± %{customdata[0]:${format}} (n=%{customdata[1]})  %{meta[0]}`,
  };
  return [band, line];
}

/** The ranges of the axes: everything, or the second half, where runs come to differ, as high as what lies there. */
function windowOf(traces, chart) {
  const [, last] = extent([0, ...traces.flatMap((trace) => trace.x)]);
  if (view.part === "all" || !last) return { x: [0, last * 1.02 || 1] };
  const values = traces.flatMap((trace) =>
    trace.y.filter((value, index) => value != null && trace.x[index] >= last / 2),
  );
  const [low, high] = extent(values);
  const edge = 0.05 * (high - low) || 1e-6;
  const log = view.log && chart.log;
  return {
    x: [last / 2, last * 1.01],
    y: { range: log ? [Math.log10(low), Math.log10(high)] : [low - edge, high + edge] },
  };
}

function drawCurves() {
  for (const chart of CHARTS) {
    if (!chart.place) continue;
    const traces = tagsOf(chart).flatMap(([tag, dash]) =>
      data.sets.flatMap((set, number) => tracesOf(set, number, tag, dash, chart)),
    );
    chart.empty.hidden = traces.length > 0;
    // One box for all lines has their colours; a box for one line has room for its configuration.
    const lines = traces.filter((trace) => trace.hovertemplate);
    const together = lines.length <= MOST_IN_ONE_BOX;
    for (const line of lines) line.hovertemplate += `${together ? "" : "<br>%{meta[1]}"}<extra></extra>`;
    const window = windowOf(traces, chart);
    const y = {
      ...window.y,
      type: view.log && chart.log ? "log" : "linear",
      tickformat: chart.percent ? ".0~%" : undefined,
      exponentformat: "power",
    };
    Plotly.react(
      chart.place,
      traces,
      layout({
        xaxis: {
          title: { text: view.x },
          unifiedhovertitle: { text: `${view.x} %{x}` },
          hoverformat: view.x === "epoch" ? ".2~f" : ",d",
          range: window.x,
        },
        yaxis: y,
        hovermode: together ? "x unified" : "closest",
        hoverdistance: 40,
        dragmode: "zoom",
        uirevision: view.x + view.part + y.type,
      }),
      PLOT_OPTIONS,
    );
  }
}

/** A zoom along x holds for all charts. */
function shareZoom(chart, change) {
  const range =
    change["xaxis.range[0]"] == null ? change["xaxis.range"] : [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  const update = change["xaxis.autorange"] ? { "xaxis.autorange": true } : range ? { "xaxis.range": range } : null;
  if (!update || view.sharing) return;
  view.sharing = true;
  const others = CHARTS.filter((other) => other !== chart && other.place);
  Promise.all(others.map((other) => Plotly.relayout(other.place, update))).finally(() => {
    view.sharing = false;
  });
}

// ------------------------------------------------------------------------------------------------------------- legend

/** One entry for each configuration, its seeds below it; what is ticked is drawn. */
function legend() {
  const entries = data.sets
    .map((set, number) => {
      const drawn = set.runs.filter((index) => Object.keys(data.runs[index].curves).length);
      const box = make("input", { type: "checkbox", change: () => choose(drawn, box.checked) });
      const seeds = drawn.map((index) => {
        const run = data.runs[index];
        const own = make("input", { type: "checkbox", change: () => choose([index], own.checked) });
        const name = run.seed == null ? run.name : `seed ${run.seed}`;
        const state = run.status === "finished" ? "once more" : run.status;
        const text = run.counts ? name : `${name}, ${state}`;
        return {
          index,
          own,
          element: make("li", {}, make("label", { title: run.directory }, own, make("span", {}, text))),
        };
      });
      const n = make("span", { class: "quiet" });
      const list =
        seeds.length < 2
          ? null
          : make(
              "details",
              {},
              make("summary", {}, "choose seeds"),
              make("ul", {}, ...seeds.map((seed) => seed.element)),
            );
      const element = make(
        "li",
        { hidden: !drawn.length },
        make("label", {}, box, swatch(number), make("span", {}, `${set.label} `, n)),
        list,
      );
      const update = () => {
        const ticked = drawn.filter((index) => view.chosen.has(index));
        box.checked = ticked.length > 0;
        box.indeterminate = ticked.length > 0 && ticked.length < drawn.length;
        for (const seed of seeds) seed.own.checked = view.chosen.has(seed.index);
        const status =
          drawn.length === 1 && data.runs[drawn[0]].status !== "finished" ? data.runs[drawn[0]].status : "";
        n.textContent = status || `n=${ticked.length || drawn.length}`;
      };
      return { element, drawn, update };
    })
    .filter((entry) => entry.drawn.length);
  function choose(indices, on) {
    for (const index of indices) on ? view.chosen.add(index) : view.chosen.delete(index);
    for (const entry of entries) entry.update();
    drawCurves();
  }
  const visible = () => entries.filter((entry) => !entry.element.hidden).flatMap((entry) => entry.drawn);
  const filter = filterField("Filter curves", entries, (test) => {
    for (const entry of entries) entry.element.hidden = !test(entry.element.textContent);
  });
  const button = (text, on) =>
    make("button", { type: "button", class: "button", click: () => choose(visible(), on) }, text);
  for (const entry of entries) entry.update();
  return make(
    "div",
    { class: "legend" },
    filter,
    make("div", { class: "buttons" }, button("Tick all", true), button("Untick all", false)),
    make("ul", { class: "all", tabindex: "0", "aria-label": "Runs to draw" }, ...entries.map((entry) => entry.element)),
  );
}

/** At first: the best configurations, by their finished runs, and those that are running. */
function chooseFirst() {
  const finished = (set) => set.runs.filter((index) => data.runs[index].counts);
  const results = data.sets.some((set) => finished(set).length);
  data.sets.forEach((set, number) => {
    const running = set.runs.some((index) => data.runs[index].status === "running");
    if (!running && (number >= MOST_DRAWN || (results && !finished(set).length))) return;
    for (const index of finished(set).length ? finished(set) : set.runs) view.chosen.add(index);
  });
}

/** A few radio buttons or check boxes with a name. */
function choices(title, options, type, isOn, change) {
  const inputs = Object.entries(options).map(([value, text]) =>
    make(
      "label",
      {},
      make("input", {
        type,
        name: title,
        value,
        checked: isOn(value),
        change: (event) => {
          change(value, event.target.checked);
          drawCurves();
        },
      }),
      text,
    ),
  );
  return make("fieldset", {}, make("legend", {}, title), ...inputs);
}

/** Radio buttons that set `view[key]`. */
function radios(title, key, options) {
  const change = (value) => {
    view[key] = value;
  };
  return choices(title, options, "radio", (value) => view[key] === value, change);
}

function dashSample(dash) {
  const dashes = { solid: null, dash: "6 3", dot: "2 2" }[dash];
  return make(
    "svg",
    { width: 26, height: 8, "aria-hidden": "true", style: "stroke: currentColor" },
    make("line", { x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 2, "stroke-dasharray": dashes }),
  );
}

function showCurves() {
  const tags = new Set(data.runs.flatMap((run) => Object.keys(run.curves)));
  if (!tags.size) return;
  chooseFirst();
  const splits = Object.keys(SPLITS).filter((split) => tags.has(`loss/${split}`) || tags.has(`accuracy/${split}`));
  const shown = choices(
    "Split",
    Object.fromEntries(splits.map((split) => [split, split])),
    "checkbox",
    () => true,
    (split, on) => {
      on ? view.splits.add(split) : view.splits.delete(split);
    },
  );
  splits.forEach((split, index) => shown.querySelectorAll("input")[index].after(dashSample(SPLITS[split])));
  const controls = make(
    "div",
    { class: "controls" },
    shown,
    radios("Seeds", "seeds", { band: "mean ± sd", lines: "each" }),
    radios("x", "x", { epoch: "epoch", step: "step" }),
    radios("Part", "part", { all: "all", end: "second half" }),
    choices(
      "Scale",
      { log: "log loss" },
      "checkbox",
      () => view.log,
      (_, on) => {
        view.log = on;
      },
    ),
  );
  const charts = CHARTS.filter((chart) => [...tags].some((tag) => tag.split("/")[0] === chart.tag)).map((chart) => {
    chart.place = make("div", { class: "plot", role: "img", "aria-label": `${chart.title} by ${view.x}` });
    chart.empty = make("p", { class: "quiet", hidden: true }, "tick a run to see it");
    return make(
      "div",
      { class: "chart", "data-chart": chart.tag },
      make("h3", {}, chart.title),
      chart.empty,
      chart.place,
    );
  });
  begin("curves", make("span", { class: "quiet" }, data.thinned)).append(
    make("div", { class: "curves" }, legend(), make("div", {}, controls, make("div", { class: "charts" }, ...charts))),
  );
  redraws.push(drawCurves);
  drawCurves();
  for (const chart of CHARTS) chart.place?.on("plotly_relayout", (change) => shareZoom(chart, change));
}
