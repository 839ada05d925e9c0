// Live bytes while a program runs, what is alive at the peak and where it was made; and what the process held.

let chosenProgram = 0;

// When each step of a program begins, as the medians have it, in ns; and when the last one ends.
function stepTimes(program, steps) {
  let at = 0;
  const begins = [];
  for (const number of program.steps) {
    const step = steps[number];
    begins.push(at);
    at += step.median_ns + step.launch_ns / Math.max(step.count, 1) + 1;
  }
  return [...begins, at];
}

function byLine(values) {
  const found = new Map();
  for (const value of values) {
    const key = value.file + ":" + value.line;
    const known = found.get(key) || { file: value.file, line: value.line, nbytes: 0, values: [] };
    known.nbytes += value.nbytes;
    known.values.push(value);
    found.set(key, known);
  }
  return [...found.values()].sort((a, b) => b.nbytes - a.nbytes);
}

function valueTable(values) {
  return plainTable("Values", ["bytes#", "what", "made by", "line"], values.map((value) => [
    bytes(value.nbytes), el("span", { class: "mono" }, value.dtype + "[" + value.shape.join(", ") + "]"),
    el("span", {}, el("code", {}, value.op), " ", el("span", { class: "tag" }, value.role)),
    lineLink(value.file, value.line)]));
}

function lineTable(values) {
  const lines = byLine(values);
  const whole = sum(lines, (line) => line.nbytes) || 1;
  const made = (line) => [...new Set(line.values.map((value) => value.op.replace(/^aten\./, "")))].slice(0, 5).join(", ");
  return plainTable("Bytes by line", ["line", "bytes#", "share#", "(as a bar)", "made by"], lines.map((line) => [
    line.values[0].op === "input" ? "inputs" : lineLink(line.file, line.line), bytes(line.nbytes), percent(line.nbytes / whole),
    el("i", { class: "bar", style: "width:" + (110 * line.nbytes) / whole + "px" }), el("code", {}, made(line))]));
}

function bytesAxis(colors) {
  return { ...axis(colors, (u, ticks) => ticks.map((y) => bytes(y)), 78), incrs: Array.from({ length: 42 }, (_, n) => 2 ** n) };
}

function chartLabel(chart, label, explained) {
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", label);
  chart.append(el("p", { class: "soft" }, explained));
}

function planChart(chart, program, steps) {
  const memory = program.memory;
  const colors = chartColors();
  const times = stepTimes(program, steps);
  const live = [...memory.live, memory.live[memory.live.length - 1]];
  const peak = [times[memory.peak_step], memory.peak_bytes];
  const plot = new uPlot({
    width: Math.max(320, chart.clientWidth || 800), height: 280, legend: { show: false },
    cursor: { points: { show: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: (u, low, high) => [0, Math.max(high, memory.arena_bytes) * 1.15 || 1] } },
    axes: [axis(colors, (u, ticks) => ticks.map((x) => time(x)), 34), bytesAxis(colors)],
    series: [{}, { stroke: colors.accent, width: 2, fill: css("--accent-soft"), points: { show: false },
      paths: uPlot.paths.stepped({ align: 1 }) }, { stroke: colors.heat, width: 1.5, dash: [6, 4], points: { show: false } }],
    hooks: { draw: [(u) => {
      const [x, y] = [u.valToPos(peak[0], "x", true), u.valToPos(peak[1], "y", true)];
      u.ctx.beginPath();
      u.ctx.arc(x, y, 4.5 * devicePixelRatio, 0, 7);
      u.ctx.fillStyle = colors.heat;
      u.ctx.fill();
      u.ctx.font = 12 * devicePixelRatio + "px system-ui, sans-serif";
      const right = x > u.bbox.left + 0.7 * u.bbox.width;
      u.ctx.textAlign = right ? "right" : "left";
      u.ctx.fillText("peak " + bytes(peak[1]), x + (right ? -9 : 9) * devicePixelRatio, y - 8 * devicePixelRatio);
    }] },
  }, [times, live, times.map(() => memory.arena_bytes)], chart);
  plot.over.addEventListener("mousemove", (event) => {
    const ns = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x");
    const at = Math.min(times.filter((begin) => begin <= ns).length, memory.live.length) - 1;
    const step = steps[program.steps[at]];
    if (step) showTip(event, "step " + (at + 1) + ": " + bytes(memory.live[at]), step.name + "  " + stepPlace(step));
  });
  plot.over.addEventListener("mouseleave", hideTip);
  chartLabel(chart, "Live bytes over " + memory.live.length + " steps, at most " + bytes(memory.peak_bytes),
    "Bytes alive over the time of a run (intermediates, results, tensors of library calls); dashed: the arena that was " +
    "planned, which holds the intermediates.");
}

function processChart(chart, points) {
  const colors = chartColors();
  new uPlot({
    width: Math.max(320, chart.clientWidth || 800), height: 200, legend: { show: false },
    cursor: { points: { show: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: (u, low, high) => [0, high * 1.15 || 1] } },
    axes: [axis(colors, (u, ticks) => ticks.map((x) => time(x)), 34), bytesAxis(colors)],
    series: [{}, { stroke: colors.accent, width: 1.5, fill: css("--accent-soft"), points: { show: false } }],
  }, [points.map(([at]) => at), points.map(([, held]) => held)], chart);
  const held = points.map(([, each]) => each);
  chartLabel(chart, "Memory of the process over the profile, from " + bytes(Math.min(...held)) + " to " + bytes(Math.max(...held)),
    "Resident memory, sampled: Python, torch, parameters, and what the block above is part of.");
}

register("memory", "Memory", (main, profile) => {
  const process = el("div", { class: "chart" });
  const processPanel = profile.process_memory.length > 1 ? panel("What the process held", process) : null;
  const drawProcess = () => { if (processPanel) processChart(process, profile.process_memory); };
  if (!profile.programs.length) {
    main.append(panel("Memory", el("p", { class: "soft" }, "No compiled program ran.")), processPanel || "");
    drawProcess();
    return;
  }
  chosenProgram = Math.min(chosenProgram, profile.programs.length - 1);
  const select = el("select", { "aria-label": "Program",
    onchange: () => { chosenProgram = Number(select.value); show("memory"); } },
    profile.programs.map((program) => el("option", { value: program.number }, program.name + ", " + program.phase + " · " +
      bytes(program.memory.peak_bytes))));
  select.value = String(chosenProgram);
  const program = profile.programs[chosenProgram];
  const memory = program.memory;
  const chart = el("div", { class: "chart" });
  const isInput = (value) => value.op === "input";
  const [given, saved] = [memory.saved.filter(isInput), memory.saved.filter((value) => !isInput(value))].map((values) =>
    sum(values, (value) => value.nbytes));
  main.append(
    panel("Memory while a program runs", el("div", { class: "controls" }, select),
      el("div", { class: "cards" },
        card(bytes(memory.peak_bytes), "alive at the peak, step " + (memory.peak_step + 1) + " of " + memory.live.length),
        card(bytes(memory.arena_bytes), "planned: the arena, for " + bytes(memory.intermediate_bytes) + " of buffers"),
        card(bytes(memory.fused_bytes), "never stored: fusion keeps it in registers"),
        card(bytes(memory.resident), "inputs, parameters and constants"),
        memory.saved.length ? card(bytes(saved), "saved for the backward" + (given ? ", beside " + bytes(given) +
          " of inputs, which the caller holds" : "")) : null,
        memory.recomputed.length ? card(memory.recomputed.length, "ops done again by the backward") : null),
      chart),
    panel("Alive at the peak, by line", memory.alive.length ? [lineTable(memory.alive), el("details", {},
      el("summary", {}, memory.alive.length === 1 ? "The tensor" : "All " + memory.alive.length + " tensors"),
      valueTable(memory.alive))] : el("p", { class: "soft" }, "Nothing but what the caller gave.")),
    memory.saved.length ? panel("Saved by the forward for the backward, by line", lineTable(memory.saved), el("details", {},
      el("summary", {}, "All " + memory.saved.length + " tensors"), valueTable(memory.saved))) : "",
    memory.recomputed.length ? panel("Done again by the backward instead of being kept", el("ul", { class: "columns" },
      memory.recomputed.map((op) => el("li", { class: "mono" }, op)))) : "",
    processPanel || "");
  if (memory.live.length) planChart(chart, program, profile.steps);
  drawProcess();
});
