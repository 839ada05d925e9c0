// Fused ops and library calls: a table, the roofline, and what is known of each.

function chartColors() { return { ink: css("--soft"), grid: css("--line"), accent: css("--accent"), heat: css("--backward") }; }

function axis(colors, values, size) {
  return { stroke: colors.ink, grid: { stroke: colors.grid, width: 1 }, ticks: { stroke: colors.grid, width: 1 },
    values, size, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
}

// Operations a second against operations a byte; the roof is what the machine attains.
function roofline(holder, steps, machine, marked) {
  const points = steps.filter((step) => step.flops > 0 && step.median_ns > 0 && step.bytes_read + step.bytes_written > 0);
  if (!points.length) {
    holder.append(el("p", { class: "soft" }, "No step computes with floating point numbers."));
    return;
  }
  const intensity = (step) => step.flops / (step.bytes_read + step.bytes_written);
  const sorted = [...points].sort((a, b) => intensity(a) - intensity(b));
  const xs = sorted.map(intensity);
  const ys = sorted.map((step) => step.flop_rate);
  const bandwidth = machine.bandwidth[machine.bandwidth.length - 1][1];
  const cached = Math.max(...machine.bandwidth.map((pair) => pair[1]));
  const peak = machine.flops.float32;
  const [low, high] = [Math.min(xs[0], 0.05) / 2, Math.max(xs[xs.length - 1], 4 * peak / bandwidth) * 2];
  const roof = [low, peak / cached, peak / bandwidth, high].sort((a, b) => a - b);
  const all = [...new Set([...roof, ...xs])].sort((a, b) => a - b);
  const onRoof = (rate_) => all.map((x) => Math.min(peak, x * rate_));
  const colors = chartColors();
  // Several steps may have one intensity: every one is drawn, in the hook below, not as a series.
  const plot = new uPlot({
    width: Math.max(320, holder.clientWidth || 600), height: 300, cursor: { drag: { x: false, y: false }, points: { show: false } },
    legend: { show: false },
    scales: { x: { time: false, distr: 3, range: () => [low, high] },
      y: { distr: 3, range: () => [Math.max(1e6, Math.min(...ys) / 2), peak * 2] } },
    axes: [axis(colors, (u, ticks) => ticks.map((x) => (x === null ? "" : x >= 1 ? x : x.toPrecision(1))), 34),
      axis(colors, (u, ticks) => ticks.map((y) => (y === null ? "" : rate(y, ""))), 66)],
    series: [{}, { stroke: colors.ink, width: 2, points: { show: false } },
      { stroke: colors.ink, width: 1, dash: [5, 4], points: { show: false } }],
    hooks: { draw: [(u) => {
      const context = u.ctx;
      for (const step of points) {
        const isMarked = marked && step.number === marked.number;
        const [x, y] = [u.valToPos(intensity(step), "x", true), u.valToPos(step.flop_rate, "y", true)];
        context.beginPath();
        context.arc(x, y, (isMarked ? 7 : 4) * devicePixelRatio, 0, 7);
        context.globalAlpha = isMarked || !marked ? 0.8 : 0.22;
        context.fillStyle = isMarked ? colors.heat : colors.accent;
        context.fill();
      }
      context.globalAlpha = 1;
    }] },
  }, [all, onRoof(bandwidth), onRoof(cached)], holder);
  plot.over.addEventListener("mousemove", (event) => {
    const box = plot.over.getBoundingClientRect();
    let best = null;
    let distance = 14;
    for (const step of points) {
      const away = Math.hypot(plot.valToPos(intensity(step), "x") - (event.clientX - box.left),
        plot.valToPos(step.flop_rate, "y") - (event.clientY - box.top));
      if (away < distance) { best = step; distance = away; }
    }
    if (best) showTip(event, best.name + "  " + stepPlace(best), rate(best.flop_rate, "FLOP/s") + " at " +
      significant(intensity(best)) + " FLOP/byte, " + time(best.median_ns));
    else hideTip();
  });
  plot.over.addEventListener("mouseleave", hideTip);
  holder.setAttribute("role", "img");
  holder.setAttribute("aria-label", "Roofline of " + points.length + " steps: attained operations a second against " +
    "operations a byte. The table below has the same figures.");
  holder.append(el("p", { class: "soft" }, "Operations a second against operations a byte. The solid roof is what memory (" +
    rate(bandwidth, "B/s") + ") and float32 products (" + rate(peak, "FLOP/s") + ") attain; the dashed one holds for " +
    "what fits into the caches."));
}

function codeBlock(title, code) {
  if (!code) return null;
  const pre = el("pre", { tabindex: "0", "aria-label": title });
  const box = el("details", {}, el("summary", {}, title), pre);
  box.addEventListener("toggle", () => { if (box.open && !pre.firstChild) pre.textContent = code; });
  return box;
}

function stepDetail(step, profile) {
  const program = profile.programs[step.program];
  const reach = attained(step);
  const facts = [
    ["Program", program.name + ", " + program.phase + ", step " + (step.position + 1) + " of " + program.steps.length],
    ["One run", time(step.median_ns) + " (least " + time(step.min_ns) + "), " + step.count + " runs, " +
      time(step.launch_ns / Math.max(step.count, 1)) + " before it"],
    ["Memory", bytes(step.bytes_read) + " read, " + bytes(step.bytes_written) + " written: " +
      rate(step.bandwidth, "B/s") + " of " + rate(step.attainable_bandwidth, "B/s") + " attainable"],
    ["Operations", step.flops ? rate(step.flops, "FLOP") + " in " + step.dtype + ": " + rate(step.flop_rate, "FLOP/s") +
      " of " + rate(step.attainable_flop_rate, "FLOP/s") + " attainable" : "no floating point operations are known"],
    ["Bound", step.bound === "nothing" ? "nothing is to be moved or computed" : "by " + step.bound + ": " +
      time(step.bound_ns) + " at the attainable rate, " + percent(reach) + " of the time that it takes"],
  ];
  const chart = el("div", { class: "chart" });
  const details = el("details", {}, el("summary", {}, "Its place in the roofline"), chart);
  details.addEventListener("toggle", () => {
    if (details.open && !chart.firstChild) roofline(chart, profile.steps, profile.machine, step);
  });
  return el("div", { style: "padding:2px 0 12px 6px" },
    el("table", { "aria-label": "Figures" }, el("tbody", {}, facts.map(([name, value]) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))))),
    el("h3", {}, "Ops, with their share of its time"),
    plainTable("Ops", ["op", "line", "module", "share#"], step.ops.map((op) => [el("code", {}, op.op),
      lineLink(op.file, op.line), el("span", { class: "mono" }, op.scope),
      el("span", {}, el("i", { class: "bar", style: "width:" + Math.round(60 * op.share) + "px" }), " ", percent(op.share))])),
    step.reasons.length ? [el("h3", {}, "Why it was not fused further"),
      el("ul", {}, step.reasons.map((reason) => el("li", {}, reason)))] : null,
    codeBlock("Graph", text(step.graph)), codeBlock("Kernel", text(step.kernel)), codeBlock("LLVM IR", text(step.llvm)), codeBlock("Triton", text(step.triton)),
    details);
}

register("steps", "Fused ops", (main, profile, target) => {
  const number = (title, value, show) => ({ title, value, show, number: true });
  const table = sortedTable({
    label: "fused ops and library calls", rows: [...profile.steps], sortBy: 5,
    key: (step) => step.name + " " + step.kind + " " + step.dtype + " " +
      step.ops.map((op) => op.op + " " + op.file + ":" + op.line + " " + op.scope).join(" "),
    detail: (step) => stepDetail(step, profile),
    columns: [
      { title: "Fused op", value: (step) => step.name, show: (step) => step.name },
      { title: "Kind", value: (step) => step.kind, show: (step) => el("span", { class: "tag" }, step.kind) },
      { title: "Line", value: stepPlace, show: (step) => el("span", { class: "mono" }, stepPlace(step)) },
      number("Runs", (step) => step.count, (step) => step.count),
      number("Median", (step) => step.median_ns, (step) => time(step.median_ns)),
      number("Total", (step) => step.total_ns, (step) => time(step.total_ns)),
      number("Share", (step) => step.share, (step) => percent(step.share)),
      number("Moves", (step) => step.bytes_read + step.bytes_written, (step) => bytes(step.bytes_read + step.bytes_written)),
      number("Bandwidth", (step) => step.bandwidth, (step) => rate(step.bandwidth, "B/s")),
      number("Operations", (step) => step.flop_rate, (step) => (step.flops ? rate(step.flop_rate, "FLOP/s") : "")),
      number("Of attainable", (step) => attained(step) ?? -1, (step) => (attained(step) === null ? "" : percent(attained(step)))),
    ],
  });
  const chart = el("div", { class: "chart" });
  const tablePanel = panel("Fused ops and library calls", table.node);
  main.append(tablePanel, panel("Roofline", chart));
  roofline(chart, profile.steps, profile.machine, null);
  if (target) table.openOnly(target.steps.map((each) => profile.steps[each]));
});
