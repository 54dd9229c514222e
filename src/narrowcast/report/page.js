"use strict";
const options = { responsive: true, displayModeBar: false };
for (const [id, figure] of Object.entries(FIGURES)) Plotly.newPlot(id, figure.data, figure.layout, options);

const lines = ["drift", "val", "train", "clock"].filter(id => id in FIGURES), keys = [...document.querySelectorAll(".keys button")];
let kept = null;
function light(name) {
  for (const id of lines) {
    const opacity = FIGURES[id].data.map(line => name === null || line.name === name ? 1 : 0.12);
    if (opacity.length) Plotly.restyle(id, { opacity });
  }
}
for (const key of keys) {
  const name = key.dataset.recipe;
  key.addEventListener("pointerenter", () => light(name));
  key.addEventListener("pointerleave", () => light(kept));
  key.addEventListener("click", () => {
    kept = kept === name ? null : name;
    for (const other of keys) other.setAttribute("aria-pressed", other.dataset.recipe === kept);
    light(kept);
  });
}

const recipe = document.getElementById("recipe");
const measure = document.getElementById("measure");
for (const name of Object.keys(MAPS)) recipe.add(new Option(name, name));
recipe.value = Object.keys(MAPS).includes("mxfp4") ? "mxfp4" : recipe.value;

function show(value, kind) {
  if (value === null) return "exact";
  if (kind === "sqnr_db") return value.toFixed(1);
  const share = 100 * value;
  return share === 0 ? "0" : share < 0.01 ? "<0.01 %" : share.toFixed(2) + " %";
}

function draw() {
  const map = MAPS[recipe.value], kind = measure.value;
  if (!map) return;
  const text = map[kind].map(row => row.map(v => show(v, kind)));
  const good = kind === "sqnr_db";
  const top = good ? 60 : Math.max(0.01, ...map[kind].flat());
  const z = map[kind].map(row => row.map(v => v === null ? top : v));  // null: nothing is lost
  const data = [{
    type: "heatmap", x: map.operands, y: map.sites, z, text, texttemplate: "%{text}", textfont: { color: "#222" },
    hovertemplate: "%{y}<br>%{x}<br>%{text}<extra></extra>", xgap: 2, ygap: 2,
    colorscale: good ? [[0, "#E8743B"], [1, "#F4F4F2"]] : [[0, "#F4F4F2"], [1, "#E8743B"]],
    zmin: 0, zmax: top, showscale: false,
  }];
  const layout = {
    height: 40 + 26 * map.sites.length, font: { family: "system-ui, sans-serif", size: 12, color: "#222" },
    margin: { l: 10, r: 10, t: 30, b: 10 }, xaxis: { side: "top", fixedrange: true },
    yaxis: { autorange: "reversed", automargin: true, fixedrange: true },
  };
  Plotly.react("heat", data, layout, options);
}
recipe.addEventListener("change", draw);
measure.addEventListener("change", draw);
draw();
