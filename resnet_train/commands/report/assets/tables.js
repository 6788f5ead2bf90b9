// The result in three figures, the table of configurations, grades, what has not finished, two configurations side by
// side, and what each run was made with.

const ranked = data.sets.filter((set) => set.finished > 0); // configurations with a finished run, best first
const runTitle = (run) => `${run.name}${run.seed == null ? "" : `, seed ${run.seed}`}`;

function showHead() {
  document.title = `${data.title} · resnet-report`;
  find("title").textContent = data.title;
  find("written").textContent = `resnet-report, ${data.written}`;
  find("footer").textContent = data.footer;
  if (data.notes.length) {
    const [summary, list] = find("notes").children;
    summary.textContent = `${many(data.notes.length, "thing")} left out`;
    list.append(...data.notes.map((note) => make("li", {}, note)));
    find("notes").hidden = false;
  }
}

function figure(mark, strong, ...lines) {
  const paragraphs = lines.filter(Boolean).map((line) => make("p", { class: "quiet" }, line));
  return make(
    "div",
    { class: "figure", style: mark == null ? null : `--mark: var(--group-${mark % COLOURS})` },
    strong,
    ...paragraphs,
  );
}

/** Which configuration is best, by how much, how sure. */
function showVerdict() {
  const { best, next, difference, interval, clear, sure } = data.verdict;
  if (best == null) {
    find("verdict").append(
      figure(null, make("strong", { class: "text" }, "No run has a result yet"), data.verdict.sure),
    );
    return;
  }
  const group = data.sets[best];
  const spread =
    group.n > 1 ? `${metric.label}, mean ± standard deviation of ${group.n} seeds` : `${metric.label}, one run`;
  const rank =
    ranked.length > 1 ? `best of ${many(ranked.length, "configuration")}` : "the only configuration with a result";
  find("verdict").append(
    figure(best, make("strong", { class: "text" }, group.label), rank),
    figure(best, make("strong", {}, scoreAndDeviation(group.mean, group.sd)), spread),
  );
  if (next == null) {
    const mean = interval ? `${score(interval[0])} to ${score(interval[1])}` : "One seed";
    find("verdict").append(
      figure(null, make("strong", { class: "text" }, mean), interval && "95 % interval of the mean", sure),
    );
    return;
  }
  const unit = (value) => (metric.kind === "percent" ? fixed(100 * Math.abs(value), 2) : score(Math.abs(value)));
  const sign = (value) => (value < 0 ? "−" : "+") + unit(value);
  const points = metric.kind === "percent" ? " points" : "";
  const side = metric.lower ? "below" : "above";
  const range = interval && `95 % interval of the difference: ${sign(interval[0])} to ${sign(interval[1])}${points}`;
  find("verdict").append(
    figure(
      next,
      make(
        "strong",
        { class: "text" },
        difference ? `${unit(difference)}${points} ${side} the next` : "Equal to the next",
      ),
      make("span", {}, make("em", { class: clear ? "good" : "warn" }, clear ? "Clear. " : "Not sure. "), sure),
      data.sets[next].label,
      range,
    ),
  );
}

/** All results of a configuration on the axis that all rows share, with the mean and ± one standard deviation. */
function strip(group, number, [low, high]) {
  const x = (value) => `${4 + 92 * (high > low ? (value - low) / (high - low) : 0.5)}%`;
  const svg = make("svg", {
    class: "strip",
    role: "img",
    "aria-label": `results ${group.results.map(score).join(", ")}`,
  });
  const style = `stroke: var(--group-${number % COLOURS}); fill: var(--group-${number % COLOURS})`;
  const line = (x1, x2, y1, y2, width) =>
    make("line", { x1, x2, y1, y2, style, "stroke-width": width, "stroke-linecap": "round" });
  if (group.sd != null) svg.append(line(x(group.mean - group.sd), x(group.mean + group.sd), "50%", "50%", 2));
  if (group.n > 1) svg.append(line(x(group.mean), x(group.mean), "12%", "88%", 2.5));
  for (const value of group.results) {
    svg.append(
      make(
        "circle",
        { cx: x(value), cy: "50%", r: 4, style, "fill-opacity": 0.45, "stroke-width": 1 },
        make("title", {}, score(value)),
      ),
    );
  }
  return svg;
}

function showConfigurations() {
  if (!ranked.length) return;
  const ends = ranked
    .filter((group) => group.n)
    .flatMap((group) => [...group.results, group.mean - (group.sd ?? 0), group.mean + (group.sd ?? 0)]);
  const range = ends.length ? extent(ends) : [null, null];
  const result = {
    title: metric.label,
    number: true,
    value: (row) => row.mean,
    show: (row) => scoreAndDeviation(row.mean, row.sd),
  };
  const keys = data.keys.filter((key) => new Set(ranked.map((set) => set.columns[key])).size > 1);
  const columns = [
    ...(keys.length ? [] : [{ title: "configuration", value: (row) => row.label }]),
    ...keys.map((key) => ({ title: key, value: (row) => row.columns[key] ?? null })),
    result,
    { title: "n", number: true, class: "plain", value: (row) => row.n },
    ...(range[0] < range[1]
      ? [
          {
            title: "",
            class: "plain",
            show: (row) => (row.n ? strip(row, data.sets.indexOf(row), range) : ""),
            below: make("span", { class: "quiet" }, `${score(range[0])} to ${score(range[1])}`),
          },
        ]
      : []),
    { title: "time", number: true, class: "plain", value: (row) => row.seconds, show: (row) => duration(row.seconds) },
    { title: "images/s", number: true, class: "plain", value: (row) => row.rate, show: (row) => whole(row.rate) },
  ];
  columns.unshift({ title: "", class: "plain", show: (row) => swatch(data.sets.indexOf(row)) });
  const best = data.sets[data.verdict.best];
  const made = table("Configurations", columns, ranked, {
    sort: result,
    descending: !metric.lower,
    rowClass: (row) => (row === best && ranked.length > 1 ? "best" : null),
    none: "no configuration has all these words",
  });
  const about = keys.length ? "only the keys that differ" : "";
  begin(
    "configurations",
    make("span", { class: "quiet" }, about),
    filterField("Filter configurations", ranked, made.filter),
  ).append(made.element);
}

/** What the runs of a recipe reached, against what its source gives, and in what the two are not alike. */
function showGrades() {
  const rows = ranked.filter((set) => set.grade);
  if (!rows.length) return;
  const kinds = { above: "good", below: "bad", "too few seeds": "warn" };
  const points = (value) => `${value < 0 ? "−" : "+"}${fixed(Math.abs(value), 2)}`;
  const result = (mean, sd, n) => `${fixed(mean, 2)}${sd == null ? "" : ` ± ${fixed(sd, 2)}`} % (n = ${n})`;
  const grade = (set) => {
    const { recipe, verdict, mean, std, n, interval, expected, differences } = set.grade;
    const said = `${result(mean, std, n)}, expected ${result(expected.mean, expected.spread, expected.n)}`;
    const reach = interval ? `; 95 % interval of the difference ${interval.map(points).join(" to ")} points` : "";
    const head = make("summary", {}, `${many(differences.length, "difference")} of protocol`);
    const list = make("ul", {}, ...differences.map((text) => make("li", {}, text)));
    return make(
      "div",
      { class: "grade" },
      make(
        "p",
        {},
        swatch(data.sets.indexOf(set)),
        ` ${recipe} `,
        make("strong", { class: kinds[verdict] ?? null }, verdict),
      ),
      make("p", {}, `${said}${reach}`),
      make("p", { class: "quiet" }, `${rows.length > 1 ? `${set.label}; ` : ""}expected by ${expected.source}`),
      differences.length ? make("details", {}, head, list) : null,
    );
  };
  const about = "within: the spread over seeds alone explains the difference";
  begin("recipes", make("span", { class: "quiet" }, about)).append(make("div", { class: "two" }, ...rows.map(grade)));
}

function showUnfinished() {
  const rows = data.runs.filter((run) => run.status !== "finished");
  if (!rows.length) return;
  const kinds = { running: "good", failed: "bad", interrupted: "warn" };
  const at = (run) => run.progress ?? {};
  const status = {
    title: "status",
    value: (run) => run.status,
    show: (run) => make("span", { class: kinds[run.status] ?? "quiet" }, run.status),
  };
  const columns = [
    status,
    { title: "configuration", class: "long", value: (run) => run.label },
    { title: "seed", number: true, value: (run) => run.seed },
    {
      title: "epoch",
      number: true,
      value: (run) => at(run).epoch,
      show: (run) =>
        at(run).epoch == null
          ? "–"
          : `${fixed(at(run).epoch, 1)}${at(run).epochs == null ? "" : " of " + short(at(run).epochs)}`,
    },
    {
      title: "accuracy so far",
      number: true,
      value: (run) => at(run).accuracy,
      show: (run) => (at(run).accuracy == null ? "–" : `${at(run).split} ${percent(at(run).accuracy)}`),
    },
    {
      title: "time left",
      number: true,
      value: (run) => at(run).seconds_left,
      show: (run) => duration(at(run).seconds_left),
    },
    { title: "directory", value: (run) => run.name },
    ...(rows.some((run) => run.error) ? [{ title: "error", class: "long", value: (run) => run.error }] : []),
  ];
  begin("unfinished", make("span", { class: "quiet" }, "their results do not count above")).append(
    table("Runs that have not finished", columns, rows, { sort: status, descending: true }).element,
  );
}

// ------------------------------------------------------------------------------------------------------------ compare

const configOf = (run) => ({ ...data.common, ...run.config });

function showCompare() {
  if (data.runs.length < 2) return;
  const select = (label, chosen) => {
    const options = data.runs.map((run, index) =>
      make("option", { value: index, selected: index === chosen }, `${run.label} – ${runTitle(run)}`),
    );
    return make("select", { "aria-label": label, change: draw }, ...options);
  };
  const firstOf = (number) => data.sets[number]?.runs[0];
  const one = select("First run", firstOf(0) ?? 0);
  const other = select("Second run", firstOf(1) ?? (firstOf(0) === 1 ? 0 : 1));
  const all = make("input", { type: "checkbox", change: draw });
  const place = make("div");
  begin("compare").append(
    make("div", { class: "choice" }, make("label", {}, "A", one), make("label", {}, "B", other)),
    make("div", { class: "controls" }, make("label", {}, all, "also the keys that are the same")),
    place,
  );
  function draw() {
    const [a, b] = [one, other].map((choice) => configOf(data.runs[choice.value]));
    const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort();
    const differ = (key) => a[key] !== b[key];
    const key = { title: "key", value: (row) => row };
    const columns = [key, { title: "A", value: (row) => a[row] }, { title: "B", value: (row) => b[row] }];
    place.replaceChildren(
      table(
        "Differences of two configurations",
        columns,
        keys.filter((row) => all.checked || differ(row)),
        {
          rowClass: (row) => (all.checked && differ(row) ? "best" : null),
          none: "the two configurations are the same",
        },
      ).element,
    );
  }
  draw();
}

// --------------------------------------------------------------------------------------------------------------- runs

/** What a run was made with; built when it is opened. */
function runFacts(run) {
  const copy = (event) => {
    navigator.clipboard?.writeText(run.command).then(
      () => {
        event.target.textContent = "Copied";
      },
      () => {},
    );
  };
  const button = make("button", { type: "button", class: "button", click: copy }, "Copy");
  const facts = [
    ["command", run.command && make("div", {}, make("pre", {}, run.command), button)],
    ["directory", make("code", {}, run.directory)],
    ["hardware", run.hardware],
    ["computed in", run.computed],
    ["trained", run.trained],
    ["source", run.commit && make("code", {}, run.commit)],
    [
      "versions",
      Object.entries(run.versions)
        .map(([name, version]) => `${name} ${version}`)
        .join(", "),
    ],
    ["error", run.error && make("span", { class: "bad" }, run.error)],
    ["forced", run.forced.join(", ")],
  ];
  const rows = facts.filter(([, fact]) => fact).flatMap(([name, fact]) => [make("dt", {}, name), make("dd", {}, fact)]);
  const keys = Object.entries(configOf(run)).map(([key, value]) => ({ key, value }));
  const key = { title: "key", value: (row) => row.key };
  const configuration = make(
    "details",
    {},
    make("summary", {}, `Configuration, ${many(keys.length, "key")}`),
    table("Configuration", [key, { title: "value", value: (row) => row.value }], keys).element,
  );
  return [make("dl", {}, ...rows), ...(keys.length ? [configuration] : [])];
}

function showRuns() {
  const entries = data.runs.map((run) => {
    const result = run.result == null ? run.status : score(run.result);
    const head = make(
      "summary",
      {},
      run.set == null ? null : swatch(run.set),
      " ",
      make("strong", {}, result),
      ` ${run.label} – ${runTitle(run)}`,
    );
    const details = make("details", { class: "run" }, head);
    details.addEventListener("toggle", () => details.append(...runFacts(run)), { once: true });
    return { details, text: head.textContent + run.command };
  });
  const show = (test) => {
    for (const entry of entries) entry.details.hidden = !test(entry.text);
  };
  begin(
    "runs",
    make("span", { class: "quiet" }, "command, hardware, versions, configuration"),
    filterField("Filter runs", entries, show),
  ).append(...entries.map((entry) => entry.details));
}
