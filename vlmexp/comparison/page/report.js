// Text from the data reaches the page through textContent alone, so nothing in it can become markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { runs, options, short, metric } = data;
const PAGE = 24, MANY = 12, RIGHT = 0.5;
const $ = (selector, root = document) => root.querySelector(selector);
const isLoss = data.losses.includes(metric);
const label = (name) => data.labels[name] ?? name ?? "";
const isShare = (name) => data.shares.includes(name);
const shown = (value, name = metric) => (value == null ? "–" : isShare(name) ? (100 * value).toFixed(2) : String(+value.toPrecision(4)));
const known = (value) => value !== undefined && value !== null;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(known));
  return made;
}

function fillSelect(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, textContent: text })));
  if (known(chosen)) select.value = chosen;
}

function duration(span) {
  if (span == null) return "–";
  const whole = Math.round(span), two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)}:${two(whole % 60)} min` : `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)} h`;
}

// --- leaderboard ---------------------------------------------------------------------------------------------------

function scoreCell(run) {
  if (!run.score) return element("td", { className: `problem ${run.status}`, textContent: run.undefined[metric] ? `–: ${run.undefined[metric]}` : run.note || "–", title: run.note });
  const { value, low, high } = run.score;
  const content = element("div", { className: "score" });
  if (low != null && isShare(metric)) {
    const bar = element("span", { className: "bar" }), range = element("i"), point = element("b");
    range.style.left = `${100 * low}%`;
    range.style.width = `${100 * (high - low)}%`;
    point.style.left = `${100 * value}%`;
    bar.append(range, point);
    content.append(bar);
  }
  content.append(element("b", { textContent: shown(value) }));
  if (low != null) content.append(element("span", { className: "soft", textContent: isShare(metric) ? `[${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]` : `[${shown(low)}, ${shown(high)}]` }));
  return element("td", {}, content);
}

function againstBest(run) {
  const cell = element("td", { textContent: "–" });
  if (!run.test) return cell;
  const { p, difference, low, high, gains, losses, n } = run.test;
  cell.textContent = p < 1e-4 ? "< 0.0001" : p.toFixed(4);
  cell.className = p < 0.05 ? "bad" : "";
  const [step, from, to] = [difference, low, high].map((value) => shown(value, data.judge));
  cell.title = `${step} ${isShare(data.judge) ? "points " : ""}[${from}, ${to}] against the best run: ${gains} gained, ${losses} lost of ${n}`;
  return cell;
}

const shortened = (name) => (name.length > 28 ? `${name.slice(0, 14)}…${name.slice(-13)}` : name);
const described = (run) => [run.name, ...options.filter((option) => option in run.options).map((option) => `${short[option]}=${run.options[option]}`)].join(" ").slice(0, 90);
const text = (value, className = "") => element("td", { textContent: value, className });
const optionValue = (run, option) => (run.options[option] !== undefined && run.options[option] !== "" && !isNaN(run.options[option]) ? +run.options[option] : run.options[option]);
const others = [...new Set(runs.flatMap((run) => Object.keys(run.scores)))].filter((name) => name !== metric);
const columns = [
  { title: "run", of: (run) => run.name, cell: (run) => element("td", { textContent: run.name, title: `${run.directory}\n${run.command}` }) },
  ...(metric ? [{ title: label(metric) + (isShare(metric) ? " %" : ""), of: (run) => run.score?.value, cell: scoreCell, isScore: true }] : []),
  ...options.map((option) => ({ title: short[option], hint: option, of: (run) => optionValue(run, option), cell: (run) => text(run.options[option] ?? "–") })),
  { title: "gain", hint: `over the model before fine-tuning${isShare(metric) ? ", in points" : ""}`, of: gain, cell: (run) => text(known(gain(run)) ? (gain(run) >= 0 ? "+" : "−") + shown(Math.abs(gain(run))) : "–") },
  { title: "p", hint: "against the best run", of: (run) => run.test?.p, cell: againstBest },
  { title: "n", of: (run) => run.score?.n, cell: (run) => text(run.score?.n?.toLocaleString("en") ?? "–") },
  { title: "cut", hint: "answers that came to the limit of their length without an end", of: (run) => run.cut || null, cell: (run) => text(run.cut?.toLocaleString("en") ?? "–", run.cut ? "warn" : "") },
  { title: "status", of: (run) => run.status, cell: (run) => Object.assign(text(run.status + (run.marks.length ? " ⚠" : ""), `text ${run.status}`), { title: run.marks.join("; ") }), isText: true },
  { title: "time", of: (run) => run.seconds, cell: (run) => text(duration(run.seconds)) },
  { title: "examples/s", of: (run) => run.rate, cell: (run) => text(run.rate == null ? "–" : String(+run.rate.toPrecision(4))) },
  { title: "peak GiB", of: (run) => run.memory, cell: (run) => text(run.memory == null ? "–" : String(+run.memory.toPrecision(3))) },
  ...others.map((name) => ({ title: label(name), of: (run) => run.scores[name], cell: (run) => text(shown(run.scores[name], name)) })),
  { title: "note", of: (run) => run.note, cell: (run) => text(run.note, "text warn"), isText: true },
].filter((column) => column.title === "run" || column.isScore || runs.some((run) => known(column.of(run)) && column.of(run) !== ""));

function gain(run) {
  return data.evaluation !== "base" && known(run.base) && run.score && !isLoss ? run.score.value - run.base : null;
}

function drawLeaderboard(sorted = null, ascending = true) {
  const order = [...runs];
  if (sorted !== null) {
    const of = columns[sorted].of;
    order.sort((a, b) => {
      const [x, y] = [of(a), of(b)];
      if (!known(x) || !known(y)) return known(y) - known(x);
      const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return ascending ? sign : -sign;
    });
  }
  const head = element("tr", {}, ...columns.map((column, index) => {
    const heading = element("th", { scope: "col", title: column.hint ?? "", className: column.isText ? "text" : "" });
    if (index === sorted) heading.ariaSort = ascending ? "ascending" : "descending";
    heading.append(element("button", { type: "button", textContent: column.title, onclick: () => drawLeaderboard(index, index === sorted ? !ascending : index === 0 || !!column.isText) }));
    return heading;
  }));
  const rows = order.map((run) => element("tr", {}, ...columns.map((column) => column.cell(run))));
  $("#leaderboard table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- plots -----------------------------------------------------------------------------------------------------------

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function layout(extra) {
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true };
  return {
    paper_bgcolor: color("paper"), plot_bgcolor: color("paper"), font: { color: color("ink"), size: 13 },
    margin: { l: 50, r: 16, t: 16, b: 44 }, hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("ink") } },
    ...extra, xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

function drawCurves() {
  const name = $("#curves select").value;
  const drawn = runs.filter((run) => run.curves[name]);
  const traces = drawn.map((run) => ({
    name: shortened(run.name), x: run.curves[name][0], y: run.curves[name][1], mode: run.curves[name][0].length > 1 ? "lines" : "markers",
    line: { width: 1.8 }, hovertemplate: "%{y:.5g}",
  }));
  const narrow = innerWidth < 640;
  Plotly.react($("#curves .plot"), traces, layout({
    height: narrow ? 400 : 420, showlegend: drawn.length > 1 && (!narrow || drawn.length <= MANY),
    legend: narrow ? { orientation: "h", yanchor: "top", y: -0.4 } : { font: { size: 12 } }, hovermode: drawn.length > MANY ? "closest" : "x unified", dragmode: narrow ? false : "zoom",
    xaxis: { title: { text: "step" } }, yaxis: { title: { text: name.replaceAll("_", " ") }, type: $("#curves input").checked ? "log" : "linear" },
  }), CONFIG);
}

function drawHeatmap() {
  const [down, across] = [...document.querySelectorAll("#heatmap select")].map((select) => select.value);
  const scored = runs.filter((run) => run.score && run.options[down] !== undefined && run.options[across] !== undefined);
  const values = (option) => [...new Set(scored.map((run) => run.options[option]))].sort((a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b));
  const [ys, xs] = [values(down), values(across)];
  const cells = ys.map((y) => xs.map((x) => scored.filter((run) => run.options[down] === y && run.options[across] === x)));
  const mean = (found) => (found.length ? found.reduce((sum, run) => sum + run.score.value, 0) / found.length : null);
  const scale = isShare(metric) ? 100 : 1;
  const z = cells.map((row) => row.map((found) => (found.length ? scale * mean(found) : null)));
  const dark = document.documentElement.dataset.theme === "dark";
  Plotly.react($("#heatmap .plot"), [{
    type: "heatmap", x: xs, y: ys, z, text: cells.map((row) => row.map((found) => (found.length ? `${shown(mean(found))}<br>n=${found.length}` : ""))),
    texttemplate: "%{text}", textfont: { size: 14, color: color("ink") }, hovertemplate: "%{y} × %{x}: %{z:.2f}<extra></extra>", xgap: 2, ygap: 2, showscale: innerWidth >= 640,
    colorscale: dark ? [[0, "#1b2636"], [1, "#2f62b5"]] : [[0, "#edf3fc"], [1, "#86aee9"]], reversescale: isLoss,
  }], layout({
    height: Math.min(640, 150 + 70 * ys.length), dragmode: false,
    xaxis: { type: "category", title: { text: short[across] }, fixedrange: true }, yaxis: { type: "category", title: { text: short[down] }, fixedrange: true },
  }), CONFIG);
}

// --- by type ---------------------------------------------------------------------------------------------------------

function drawTypes() {
  const column = $("#types select").value;
  const listed = runs.filter((run) => run.by[column]);
  const values = [...new Set(listed.flatMap((run) => Object.keys(run.by[column])))].sort();
  const size = (value) => [...new Set(listed.map((run) => run.by[column][value]?.[1]).filter(known))].sort((a, b) => a - b).map((n) => n.toLocaleString("en")).join(" or ");
  const head = element("tr", {}, element("th", { textContent: "run" }), ...values.map((value) => element("th", { textContent: `${value} (n=${size(value)})` })));
  const rows = listed.map((run) => element("tr", {}, element("td", { textContent: run.name, title: run.directory }), ...values.map((value) => {
    const found = run.by[column][value]?.[0];
    const cell = text(shown(found));
    if (known(found) && isShare(metric)) cell.style.background = `rgba(var(--heat), ${(0.45 * found).toFixed(3)})`;
    return cell;
  })));
  $("#types table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- differences -----------------------------------------------------------------------------------------------------

function drawDiff() {
  const [first, second] = [...document.querySelectorAll("#diff select")].map((select) => data.recorded[+select.value]);
  const names = data.differing.map((name, index) => [name, first[index], second[index]]).filter(([, a, b]) => a !== b);
  const head = element("tr", {}, ...["what", "first", "second"].map((title) => element("th", { textContent: title, className: "text" })));
  const rows = names.map(([name, a, b]) => element("tr", {}, element("td", { textContent: name, title: name }), text(a ?? "–", "text long"), text(b ?? "–", "text long")));
  if (!rows.length) rows.push(element("tr", {}, element("td", { textContent: "Nothing that is recorded differs.", colSpan: 3 })));
  $("#diff table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- examples --------------------------------------------------------------------------------------------------------

const examples = data.examples ?? [];
const answering = runs.filter((run) => known(run.answers));
const state = { filter: "all", search: "", page: 0 };
const isRight = (answer) => answer[1] >= RIGHT;
const FILTERS = {
  all: ["all", () => true],
  fixed: ["fixed by fine-tuning", (before, after) => before && !isRight(before) && isRight(after)],
  broken: ["broken by it", (before, after) => before && isRight(before) && !isRight(after)],
  wrong: ["wrong before and after", (before, after) => before && !isRight(before) && !isRight(after)],
  right: ["right before and after", (before, after) => before && isRight(before) && isRight(after)],
  missed: ["wrong", (_, after) => !isRight(after)],
  disputed: ["runs disagree", (_, __, index) => new Set(answering.map((run) => data.columns[run.answers][index]).filter(known).map(isRight)).size > 1],
};
const searchable = examples.map((example) => [example.id, example.question, ...example.answers].join("\n").toLowerCase());

function drawExamples() {
  const run = answering[+$("#examples select").value];
  const after = data.columns[run.answers], before = known(run.baseAnswers) && data.evaluation !== "base" ? data.columns[run.baseAnswers] : null;
  const asked = examples.map((_, index) => index).filter((index) => after[index]);
  const wanted = state.search.toLowerCase();
  const found = asked.filter((index) => !wanted || searchable[index].includes(wanted) || after[index][0].toLowerCase().includes(wanted));
  const matches = (name) => found.filter((index) => FILTERS[name][1](before?.[index], after[index], index));
  const names = Object.keys(FILTERS).filter((name) => (before || !["fixed", "broken", "wrong", "right"].includes(name)) && (name !== "disputed" || answering.length > 1));
  if (!names.includes(state.filter)) state.filter = "all";
  $("#examples .filters").replaceChildren(...names.map((name) => element("button", {
    type: "button", textContent: `${FILTERS[name][0]} ${matches(name).length}`, ariaPressed: String(name === state.filter),
    onclick: () => { Object.assign(state, { filter: name, page: 0 }); drawExamples(); },
  })));
  const chosen = matches(state.filter);
  const last = Math.max(0, Math.ceil(chosen.length / PAGE) - 1);
  state.page = Math.min(state.page, last);
  const from = state.page * PAGE, page = chosen.slice(from, from + PAGE);
  $("#examples .count").textContent = chosen.length ? `${from + 1}–${from + page.length} of ${chosen.length.toLocaleString("en")} examples` : "No example is like that.";
  $("#examples .cards").replaceChildren(...page.map((index) => card(index, before?.[index], after[index])));
  const turn = (to, title) => element("button", { type: "button", textContent: title, disabled: to < 0 || to > last, onclick: () => { state.page = to; drawExamples(); $("#examples").scrollIntoView(); } });
  $("#examples .pages").replaceChildren(...(last ? [turn(state.page - 1, "← back"), element("span", { className: "soft", textContent: `page ${state.page + 1} of ${last + 1}` }), turn(state.page + 1, "next →")] : []));
}

function picture(name) {
  const source = data.pictures[name];
  if (!source) return null;
  const image = element("img", { src: source, alt: "" });
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= 96);
  return image;
}

function line(title, answer) {
  if (!answer) return [];
  const score = known(answer[1]) ? ` ${isRight(answer) ? "✓" : "✗"}` : "";
  return [element("dt", { textContent: title, title }), element("dd", { className: isRight(answer) ? "good" : "bad", textContent: (answer[0] || "(nothing)") + score })];
}

function card(index, before, after) {
  const example = examples[index];
  const images = example.images.map(picture).filter(known);
  const run = answering[+$("#examples select").value];
  const rest = answering.filter((other) => other !== run && data.columns[other.answers][index]);
  const answers = [...new Set(example.answers)].join(", ");
  const list = element("dl", {}, element("dt", { textContent: "accepted" }), element("dd", { textContent: answers }), ...line("base", before), ...line(data.evaluation === "base" ? "answer" : "fine-tuned", after));
  const more = rest.length ? element("details", {}, element("summary", { textContent: `the other ${rest.length === 1 ? "run" : `${rest.length} runs`}` }), element("dl", {}, ...rest.flatMap((other) => line(other.name, data.columns[other.answers][index])))) : null;
  const body = element("div", {}, element("h3", { textContent: example.question }), list, more, element("small", { textContent: example.id }));
  return element("article", { className: "card" }, ...(images.length ? [element("div", { className: "images" }, ...images)] : []), body);
}

// --- the page --------------------------------------------------------------------------------------------------------

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  drawPlots();
}

// The plotting library is most of the file. It is run when the first plot comes into view, after the page is there.
const DRAWN = { curves: drawCurves, heatmap: drawHeatmap };
const visible = new Set();
const watcher = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target.id));
}, { rootMargin: "300px" });

function draw(name) {
  if (visible.has(name)) return;
  watcher.unobserve(document.getElementById(name));
  visible.add(name);
  if (!window.Plotly) document.head.append(element("script", { textContent: $("#plotly").textContent }));
  DRAWN[name]();
}

function drawPlots() {
  visible.forEach((name) => DRAWN[name]());
}

function start() {
  drawLeaderboard();
  const curves = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  $("#curves").hidden = !curves.length;
  fillSelect($("#curves select"), curves.map((name) => [name, name.replaceAll("_", " ")]), curves.includes("eval_loss") ? "eval_loss" : curves[0]);
  $("#curves select").onchange = $("#curves input").onchange = drawPlots;

  const count = (option) => new Set(runs.filter((run) => run.score).map((run) => run.options[option])).size;
  const swept = options.filter((option) => count(option) > 1).sort((a, b) => (a === "seed") - (b === "seed"));
  $("#heatmap").hidden = swept.length < 2;
  const preferred = (wanted, other) => (swept.includes(wanted) ? wanted : swept.find((option) => option !== other));
  const [down, across] = document.querySelectorAll("#heatmap select");
  const entries = swept.map((option) => [option, option]);
  const row = preferred("peft.r", "train.learning_rate");
  fillSelect(down, entries, row);
  fillSelect(across, entries, row === "train.learning_rate" ? swept.find((option) => option !== row) : preferred("train.learning_rate", row));
  down.onchange = across.onchange = drawPlots;

  const by = [...new Set(runs.flatMap((run) => Object.keys(run.by)))];
  $("#types").hidden = !by.length;
  fillSelect($("#types select"), by.map((name) => [name, name.replaceAll("_", " ")]));
  $("#types select").onchange = drawTypes;
  if (by.length) drawTypes();

  $("#diff").hidden = runs.length < 2;
  document.querySelectorAll("#diff select").forEach((select, index) => {
    fillSelect(select, runs.map((run, number) => [number, described(run)]), Math.min(index, runs.length - 1));
    select.onchange = drawDiff;
  });
  if (runs.length > 1) drawDiff();

  $("#examples").hidden = !answering.length;
  fillSelect($("#examples select"), answering.map((run, number) => [number, described(run)]));
  $("#examples select").onchange = () => { state.page = 0; drawExamples(); };
  $("#examples input").oninput = (event) => { Object.assign(state, { search: event.target.value.trim(), page: 0 }); drawExamples(); };
  if (answering.length) drawExamples();

  $("nav").append(...[...document.querySelectorAll("section:not([hidden])")].map((section) => element("a", { href: `#${section.id}`, textContent: section.dataset.title })));
  $("#intervals").textContent = data.intervals;
  if (metric && known(data.judge) && data.judge !== metric) {
    const said = `${label(metric)} has no value for a single example: here it is ${label(data.judge)}.`;
    document.querySelectorAll(".judge").forEach((place) => { place.textContent = said; });
  }
  $("footer").textContent = data.notes.join(" ");
  $("#theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.onchange = () => setTheme(system.matches);
  setTheme(system.matches);
  // Plotly is large: a plot waits until it comes into view or the page has been at rest for a while.
  const plots = () => Object.keys(DRAWN).filter((name) => !$(`#${name}`).hidden);
  requestAnimationFrame(() => setTimeout(() => plots().forEach((name) => watcher.observe($(`#${name}`)))));
  setTimeout(() => plots().forEach(draw), 1000);
}

start();
