"use strict";
// Charts come alive when they are near, by the Vega-Lite descriptions beside them; tables can be sorted and filtered.
document.documentElement.classList.add("scripted");

function sized(spec, width) {
  const made = structuredClone(spec);
  if (made.facet) {
    made.columns = Math.max(1, Math.min(3, Math.floor(width / 230)));
    made.spec.width = Math.floor(width / made.columns) - 30;
  } else if (made.width > 400) {
    made.width = "container";
    made.autosize = { type: "fit-x", contains: "padding" };
    if (width < 520) narrow(made);
  }
  return made;
}

function narrow(spec) {
  spec.config.axis.labelLimit = spec.config.legend.labelLimit = 130;
  spec.config.axis.titleLimit = 220;
  const legends = (part) => {
    if (part && typeof part === "object") {
      if (part.legend && part.legend.columns) part.legend = { ...part.legend, columns: 1 };
      if (part.axis && part.axis.labelLimit) part.axis = { ...part.axis, labelLimit: 130 };
      Object.values(part).forEach(legends);
    }
  };
  legends(spec);
}

function linear(spec) {
  return JSON.parse(JSON.stringify(spec).replaceAll('"type":"log"', '"type":"linear"'));
}

async function draw(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const live = figure.querySelector(".live");
  figure.classList.add("on");
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

for (const button of document.querySelectorAll("figcaption button")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    figure.dataset.scale = figure.dataset.scale === "linear" ? "log" : "linear";
    button.textContent = figure.dataset.scale === "linear" ? "logarithmic scale" : "linear scale";
    draw(figure);
  });
}

function key(cell) {
  const text = cell.textContent.trim().replaceAll(",", "").replace("−", "-");
  const found = text.match(/^[-+±]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : text === "–" ? Infinity : text;
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
