"use strict";
const options = { responsive: true, displayModeBar: false };
for (const [id, figure] of Object.entries(FIGURES)) Plotly.newPlot(id, figure.data, figure.layout, options);

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
  const data = [{
    type: "heatmap", x: map.operands, y: map.sites, z: map[kind], text, texttemplate: "%{text}",
    hovertemplate: "%{y}<br>%{x}<br>%{text}<extra></extra>", xgap: 2, ygap: 2,
    colorscale: good ? [[0, "#D55E00"], [0.5, "#f7f7f7"], [1, "#0072B2"]] : [[0, "#f7f7f7"], [1, "#D55E00"]],
    zmin: 0, zmax: good ? 50 : Math.max(0.01, ...map[kind].flat()), showscale: true,
    colorbar: { thickness: 12, outlinewidth: 0 },
  }];
  const layout = {
    height: 120 + 26 * map.sites.length, font: { family: "system-ui, sans-serif", size: 12, color: "#222" },
    margin: { l: 10, r: 10, t: 30, b: 10 }, xaxis: { side: "top", fixedrange: true },
    yaxis: { autorange: "reversed", automargin: true, fixedrange: true },
  };
  Plotly.react("heat", data, layout, options);
}
recipe.addEventListener("change", draw);
measure.addEventListener("change", draw);
draw();
