// Calls, programs and steps over time, for the first runs. Drag to zoom, double click for the whole.

const LANES = { compiled: 0, traced: 0, eager: 0, program: 1, step: 2 };
const LANE_NAMES = ["calls", "programs", "steps"];
const LANE = 30;

register("timeline", "Timeline", (main, profile) => {
  const spans = profile.spans;
  const holder = el("div", { class: "chart", role: "img", tabindex: "0", "aria-label": "Timeline of " + spans.length +
    " calls, programs and steps. Plus and minus zoom, arrow keys move." });
  const detail = el("div", { class: "detail", "aria-live": "polite" }, el("span", { class: "soft" },
    "Drag over a stretch to zoom in, double click for the whole; with the keyboard: + and −, arrows, 0."));
  if (!spans.length) {
    main.append(panel("Timeline", el("p", { class: "soft" }, "Nothing ran.")));
    return;
  }
  const end = Math.max(profile.span_ns, ...[spans[spans.length - 1].end_ns]);
  const stepSpans = spans.filter((span) => span.kind === "step");
  // Where the steps are: the first program run that shows them, with its neighbours.
  const firstStep = stepSpans.length ? Math.min(...stepSpans.slice(0, 2000).map((span) => span.begin_ns)) : 0;
  const firstRun = spans.find((span) => span.kind === "program" && span.begin_ns <= firstStep && span.end_ns >= firstStep);
  const colors = chartColors();
  const onPaint = css("--on-paint");
  const paints = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((number) => css("--c" + number));
  const threads = 1 + Math.max(...spans.map((span) => span.thread));
  const hash = (name) => {
    let found = 7;
    for (const c of name) found = (found * 31 + c.codePointAt(0)) % 9973;
    return 1 + (found % 8);
  };
  const longest = el("div", {});
  main.append(panel("The first runs, as they happened", detail, holder), panel("Longest steps in the stretch shown", longest));
  let waiting = false;
  function drawLongest() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const { min, max } = plot.scales.x;
      const found = new Map();
      for (const span of stepSpans) {
        if (span.end_ns < min || span.begin_ns > max) continue;
        const known = found.get(span.step) || { step: profile.steps[span.step], ns: 0, count: 0 };
        known.ns += Math.min(span.end_ns, max) - Math.max(span.begin_ns, min);
        known.count += 1;
        found.set(span.step, known);
      }
      const rows = [...found.values()].sort((a, b) => b.ns - a.ns).slice(0, 12);
      longest.replaceChildren(rows.length ? plainTable("Longest steps", ["step", "line", "runs#", "time#", "of the stretch#"],
        rows.map(({ step, ns, count }) => [el("button", { type: "button", class: "link mono", onclick: () =>
          goToSteps([step.number]) }, step.name), el("span", { class: "mono" }, stepPlace(step)), count, time(ns),
          percent(ns / (max - min))])) : el("p", { class: "soft" }, "No step is shown there: the timeline has those of the " +
        "first runs."));
    });
  }
  const lane = (span) => (span.thread * 3 + LANES[span.kind]) * LANE + 4;
  const plot = new uPlot({
    width: Math.max(360, holder.clientWidth || 900), height: threads * 3 * LANE + 60, legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: [0, 1] } },
    axes: [axis(colors, (u, ticks) => ticks.map((x) => time(x)), 34),
      { ...axis(colors, () => [], 74), grid: { show: false }, ticks: { show: false } }],
    series: [{}, { show: false }],
    hooks: { setScale: [() => drawLongest()], draw: [(u) => {
      const context = u.ctx;
      const ratio = devicePixelRatio;
      const { left, top, width } = u.bbox;
      const { min, max } = u.scales.x;
      context.font = 12 * ratio + "px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.textAlign = "right";
      context.fillStyle = colors.ink;
      for (let row = 0; row < threads * 3; row += 1) {
        context.fillText(LANE_NAMES[row % 3], left - 10 * ratio, top + (row * LANE + 4 + (LANE - 6) / 2) * ratio);
      }
      context.save();
      context.beginPath(); context.rect(left, top, width, u.bbox.height); context.clip();
      context.font = 11.5 * ratio + "px ui-monospace, monospace";
      context.textAlign = "left";
      for (const span of spans) {
        if (span.end_ns < min || span.begin_ns > max) continue;
        const from = left + (width * (span.begin_ns - min)) / (max - min);
        const long = Math.max((width * (span.end_ns - span.begin_ns)) / (max - min), 1);
        const y = top + lane(span) * ratio;
        context.fillStyle = span.kind === "step" ? paints[hash(span.name)] : span.kind === "program" ? paints[0]
          : span.kind === "compiled" ? colors.ink : paints[7];
        context.globalAlpha = span.kind === "compiled" ? 0.45 : 0.85;
        context.fillRect(from, y, Math.max(long - 0.5, 0.6), (LANE - 6) * ratio);
        if (long > 46 * ratio) {
          context.globalAlpha = 1;
          context.fillStyle = span.kind === "compiled" ? css("--ink") : onPaint;
          const start = Math.max(from, left) + 5 * ratio;
          const shown = Math.floor((from + long - start - 3 * ratio) / (7 * ratio));
          if (shown > 3) context.fillText(span.name.slice(0, shown), start, y + ((LANE - 6) / 2) * ratio);
        }
      }
      context.restore();
    }] },
  }, [[0, end], [0, 0]], holder);
  const zoom = (min, max) => plot.setScale("x", { min: Math.max(0, min), max: Math.min(end, max) });
  if (firstRun) zoom(firstRun.begin_ns - 0.2 * (firstRun.end_ns - firstRun.begin_ns),
    firstRun.end_ns + 0.2 * (firstRun.end_ns - firstRun.begin_ns));
  plot.over.addEventListener("dblclick", () => zoom(0, end));
  function under(event) {
    const box = plot.over.getBoundingClientRect();
    const at = plot.posToVal(event.clientX - box.left, "x");
    const y = event.clientY - box.top;
    return spans.find((span) => span.begin_ns <= at && at <= span.end_ns && lane(span) <= y && y < lane(span) + LANE - 4);
  }
  plot.over.addEventListener("mousemove", (event) => {
    const span = under(event);
    if (!span) { hideTip(); return; }
    const step = span.step >= 0 ? profile.steps[span.step] : null;
    showTip(event, span.name, span.kind + ", " + time(span.end_ns - span.begin_ns), step ? stepPlace(step) : "");
  });
  plot.over.addEventListener("mouseleave", hideTip);
  plot.over.addEventListener("click", (event) => {
    const span = under(event);
    if (!span) return;
    detail.replaceChildren(el("b", { class: "mono" }, span.name), " " + span.kind + ", " +
      time(span.end_ns - span.begin_ns) + " ", span.step >= 0 ? el("button", { type: "button", class: "link",
      onclick: () => goToSteps([span.step]) }, "the step") : "");
  });
  holder.addEventListener("keydown", (event) => {
    const { min, max } = plot.scales.x;
    const wide = max - min;
    const moves = { "+": [0.25, -0.25], "-": [-0.5, 0.5], ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2] };
    if (event.key === "0") zoom(0, end);
    else if (moves[event.key]) zoom(min + moves[event.key][0] * wide, max + moves[event.key][1] * wide);
    else return;
    event.preventDefault();
  });
  main.append(el("p", { class: "soft" }, "Grey calls are compiled, red ones are traced or eager. Steps are shown for the " +
    "first runs of each program. p.save_chrome_trace() writes the same for Perfetto."));
});
