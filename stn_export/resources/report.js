"use strict";
// Charts come alive when they are near, by the Vega-Lite descriptions beside them; tables can be sorted and filtered.
document.documentElement.classList.add("scripted");

function sized(spec, width) {
  const made = structuredClone(spec);
  if (made.facet) {
    made.columns = Math.max(1, Math.min(3, Math.floor(width / 230)));
    made.spec.width = Math.floor(width / made.columns) - 18;
    return made;
  }
  made.width = width;
  if (made.usermeta && made.usermeta.square) square(made, width);
  if (width < 520) narrow(made);
  return made;
}

// Equal units on both axes, whatever the width.
function square(spec, width) {
  const { x, y } = spec.encoding;
  const [low, high] = y.scale.domain, [left, right] = x.scale.domain;
  const reach = (((high - low) / 2) * (width - 40)) / spec.height;
  x.scale.domain = [(left + right) / 2 - reach, (left + right) / 2 + reach];
}

// On a phone names stand in several lines, legends below each other, and axes have fewer ticks.
function narrow(spec) {
  spec.config.lineBreak = "\n";
  spec.config.legend.layout = { bottom: { direction: "vertical", anchor: "start" } };
  spec.config.legend.labelLimit = 280;
  for (const row of spec.data.values) if (row.front) row.name = wrapped(row.name, NAME);
  let lines = 1;
  const change = (part) => {
    if (!part || typeof part !== "object") return;
    if (part.x && typeof part.x.title === "string") part.x = { ...part.x, title: wrapped(part.x.title) };
    if (part.y && part.y.type === "nominal") {
      for (const row of spec.data.values) lines = Math.max(lines, wrapped(String(row[part.y.field]), NAME).split("\n").length);
      part.y = { ...part.y, axis: { ...part.y.axis, ...NAMES } };
    }
    if (part.axis && part.axis.tickCount) part.axis = { ...part.axis, tickCount: Math.min(part.axis.tickCount, 4) };
    if (part.legend && part.legend.columns) part.legend = { ...part.legend, columns: 1 };
    Object.values(part).forEach(change);
  };
  change(spec);
  if (spec.height && spec.height.step) spec.height = { step: Math.max(spec.height.step, 13 * lines + 4) };
}
const NAME = 20; // letters in a line of a name
const NAMES = { labelLimit: 150, labelExpr: `trim(replace(datum.label, regexp('(.{1,${NAME}})( +|$)', 'g'), '$1\\n'))` };

function wrapped(title, most = 38) {
  return title.replace(new RegExp(`(.{1,${most}})( +|$)`, "g"), "$1\n").trim();
}

// Draw only these lines, and name only them in the legend.
function only(spec, lines) {
  const made = structuredClone(spec);
  made.transform[0].filter.oneOf = lines;
  const series = [...new Set(made.data.values.filter((row) => lines.includes(row.line)).map((row) => row.series))];
  const legends = (part) => {
    if (part && typeof part === "object") {
      if (part.legend && part.legend.values) part.legend.values = series;
      Object.values(part).forEach(legends);
    }
  };
  legends([made.encoding, made.layer]);
  return made;
}

function linear(spec) {
  return JSON.parse(JSON.stringify(spec).replaceAll('"type":"log"', '"type":"linear"'));
}

async function draw(figure) {
  const whole = JSON.parse(figure.querySelector("script").textContent);
  const spec = figure.lines ? only(whole, figure.lines) : whole;
  const live = figure.querySelector(".live");
  figure.classList.add("on");
  figure.drawn = figure.clientWidth;
  const shown = sized(figure.dataset.scale === "linear" ? linear(spec) : spec, live.clientWidth);
  if (figure.view) figure.view.finalize();
  try {
    figure.view = (await vegaEmbed(live, shown, { actions: false, renderer: "svg", tooltip: { theme: "custom" } })).view;
    live.querySelector("svg").setAttribute("aria-hidden", "true");
  } catch (error) {
    figure.classList.remove("on");
    throw error;
  }
}

const charts = [...document.querySelectorAll("figure.chart")];
const near = new IntersectionObserver((seen) => {
  for (const each of seen.filter((one) => one.isIntersecting)) {
    near.unobserve(each.target);
    draw(each.target);
  }
}, { rootMargin: "600px" });
charts.forEach((figure) => near.observe(figure));

for (const button of document.querySelectorAll("figcaption .scale")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    figure.dataset.scale = figure.dataset.scale === "linear" ? "log" : "linear";
    button.textContent = figure.dataset.scale === "linear" ? "logarithmic scale" : "linear scale";
    draw(figure);
  });
}

for (const place of document.querySelectorAll("figure .lines")) {
  const buttons = [...place.querySelectorAll("button")];
  place.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const figure = place.closest("figure");
    figure.lines = buttons.filter((each) => each.getAttribute("aria-pressed") === "true").map((each) => each.textContent);
    place.querySelector(".count").textContent = `${figure.lines.length} of ${buttons.length} lines drawn`;
    draw(figure);
  });
}

// Without leave for the clipboard (a page that is no file and not https), the text is selected and copied the old way.
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest("section").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "copied" : "selected: copy it with the keyboard";
    }
    setTimeout(() => (button.textContent = "copy"), 3000);
  });
}

// Paper shows what is folded; a chart that was drawn for another width is drawn again.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  unfolded.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => unfolded.forEach((each) => (each.open = false)));
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => charts.filter((each) => each.view && each.drawn !== each.clientWidth).forEach(draw), 200);
});

function key(cell) {
  const text = cell.textContent.trim().replaceAll(",", "").replace("−", "-");
  const found = text.match(/^[-+±]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : text === "–" ? Infinity : text;
}

// Of a table's columns two are shown, the last two at first, and the second divided by the first.
for (const place of document.querySelectorAll(".pair")) {
  const { tHead, tBodies: [body] } = document.getElementById(place.dataset.table);
  const choices = [...place.querySelectorAll("select")], count = choices[0].length;
  const ratio = document.createElement("th");
  ratio.scope = "col";
  ratio.className = "number";
  ratio.textContent = "second ÷ first";
  tHead.rows[0].append(ratio);
  for (const row of body.rows) row.insertCell().className = "number";
  const show = () => {
    const shown = choices.map((each) => each.selectedIndex + 1);
    for (const row of [tHead.rows[0], ...body.rows]) {
      [...row.cells].forEach((each, index) => (each.hidden = index > 0 && index <= count && !shown.includes(index)));
      if (row.parentElement === tHead) continue;
      const [first, second] = shown.map((index) => parseFloat(row.cells[index].textContent.replaceAll(",", "")));
      row.cells[count + 1].textContent = Number.isFinite(second / first) ? (second / first).toPrecision(3) : "–";
    }
  };
  choices.forEach((each, index) => {
    each.selectedIndex = count - 2 + index;
    each.addEventListener("change", show);
  });
  show();
}

function ordered(one, other) {
  return typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const each of head.parentElement.children) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((one, other) =>
      (down ? -1 : 1) * ordered(key(one.cells[head.cellIndex]), key(other.cells[head.cellIndex])));
    body.append(...rows);
  });
}

for (const input of document.querySelectorAll("input[type=search]")) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    }
  });
}
