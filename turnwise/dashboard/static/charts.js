// Draws every figure[data-chart] with uPlot from its data; the numbers beside it stay as they are.
// data: {x: [...], series: [{label, values: [...]}], x_label, href: "/…?step={x}", band: [upper, lower]}
"use strict";
(() => {
  const drawn = new WeakMap(); // by plot: the chart, and what it was drawn from
  const options = new URLSearchParams(location.hash.slice(1)); // smoothing and scale, kept in the URL

  // A canvas knows neither var() nor light-dark(): an element resolves them.
  function colour(name, alpha = 1) {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const parts = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3);
    probe.remove();
    return `rgba(${parts.join(", ")}, ${alpha})`;
  }

  // A flat curve lies in the middle of its chart, and one of zeros at the bottom.
  function range(_, low, high) {
    if (low === null || high === null) return [0, 1];
    if (low !== high) return uPlot.rangeNum(low, high, 0.1, true);
    return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
  }

  function shown(value) {
    if (value === null || value === 0) return value === null ? "" : "0";
    const size = Math.abs(value);
    return size < 1e-3 || size >= 1e6 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
  }

  const STEPS = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((e) => n * 10 ** e)).sort((a, b) => a - b);

  function smoothed(values, weight) {
    if (!weight) return values;
    let last = null, norm = 0;
    return values.map((value) => {
      if (value === null) return null;
      last = (last ?? 0) * weight + (1 - weight) * value;
      norm = norm * weight + (1 - weight);
      return last / norm;
    });
  }

  // A chart whose numbers are as they were stays, and so does the cursor in it.
  function draw(figure, isForced) {
    const plot = figure.querySelector("[data-plot]");
    const data = JSON.parse(figure.dataset.chart);
    if (!plot || data.x.length === 0) return;
    const before = drawn.get(plot);
    if (!isForced && before?.source === figure.dataset.chart && before.chart.root.isConnected) return;
    before?.chart.destroy();
    const weight = Number(options.get("smooth") ?? 0);
    const isLog = options.get("scale") === "log" && data.series.every((s) => s.values.every((v) => v === null || v > 0));
    const width = Math.max(240, plot.clientWidth);
    const ink = colour("--ink-2"), line = colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
    const series = [{ label: data.x_label ?? "step" }];
    const columns = [data.x];
    data.series.forEach((each, i) => {
      const stroke = colour(`--series-${(i % 6) + 1}`);
      if (weight) {
        columns.push(each.values);
        series.push({ label: `${each.label} (raw)`, stroke: colour(`--series-${(i % 6) + 1}`, 0.35), width: 1, spanGaps: true, points: { show: false } });
      }
      columns.push(smoothed(each.values, weight));
      const points = data.x.length < 40 ? { size: 5 } : { show: false };
      series.push({ label: each.label, stroke, width: 2, spanGaps: true, points, dash: i > 5 ? [6, 4] : undefined });
    });
    const place = (at) => (weight ? 2 : 1) * (at + 1);
    const bands = data.band ? [{ series: data.band.map(place), fill: colour("--series-1", 0.13) }] : [];
    for (const at of data.band ?? []) Object.assign(series[place(at)], { width: 1, stroke: colour("--series-1", 0.55) });
    const chart = new uPlot({
      width, height: 180, series, bands,
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : { range } },
      axes: [{ ...axis, incrs: STEPS, grid: { show: false } }, { ...axis, size: 56, values: (_, ticks) => ticks.map(shown) }],
      legend: { show: data.series.length > 1 || weight > 0 },
      cursor: { sync: { key: data.sync ?? "steps" }, points: { size: 7 } },
    }, columns, plot);
    drawn.set(plot, { chart, source: figure.dataset.chart });
    if (data.href) {
      chart.over.style.cursor = "pointer";
      chart.over.addEventListener("click", () => {
        const at = chart.cursor.idx;
        if (at !== null && at !== undefined) location.assign(data.href.replace("{x}", data.x[at]));
      });
    }
  }

  function drawAll(isForced) {
    for (const figure of document.querySelectorAll("figure[data-chart]")) draw(figure, isForced);
  }

  document.addEventListener("change", (event) => {
    const control = event.target.closest("[data-chart-option]");
    if (!control) return;
    options.set(control.dataset.chartOption, control.type === "checkbox" ? (control.checked ? control.value : "") : control.value);
    history.replaceState(null, "", `#${options}`);
    drawAll(true);
  });

  document.addEventListener("DOMContentLoaded", () => {
    for (const control of document.querySelectorAll("[data-chart-option]")) {
      const value = options.get(control.dataset.chartOption);
      if (value === null) continue;
      if (control.type === "checkbox") control.checked = value === control.value;
      else control.value = value;
    }
    drawAll(true);
  });
  document.addEventListener("htmx:after:swap", () => drawAll(false));
  document.addEventListener("turnwise:theme", () => drawAll(true));
  let pending;
  addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(() => drawAll(true), 150); });
})();
