// Live bytes over the steps of a program, and what is alive at the peak.

let chosenProgram = 0;

register("memory", "Memory", (main, profile) => {
  if (!profile.programs.length) {
    main.append(panel("Memory", el("p", { class: "soft" }, "No compiled program ran.")));
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
  const rows = (values) => plainTable("Values", ["bytes#", "what", "made by", "line"], values.map((value) => [
    bytes(value.nbytes), el("span", { class: "mono" }, value.dtype + "[" + value.shape.join(", ") + "]"),
    el("span", {}, el("code", {}, value.op), " ", el("span", { class: "tag" }, value.role)),
    lineLink(value.file, value.line)]));
  main.append(
    panel("Memory while a program runs", el("div", { class: "controls" }, select),
      el("div", { class: "cards" },
        card(bytes(memory.peak_bytes), "alive at the peak, step " + (memory.peak_step + 1) + " of " + memory.live.length),
        card(bytes(memory.arena_bytes), "planned: the arena, for " + bytes(memory.intermediate_bytes) + " of buffers"),
        card(bytes(memory.fused_bytes), "never stored: fusion keeps it in registers"),
        card(bytes(memory.resident), "inputs, parameters and constants"),
        memory.saved.length ? card(bytes(sum(memory.saved, (value) => value.nbytes)), "saved for the backward") : null,
        memory.recomputed.length ? card(memory.recomputed.length, "ops done again by the backward") : null),
      chart),
    panel("Alive at the peak", memory.alive.length ? rows(memory.alive) : el("p", { class: "soft" },
      "Nothing but what the caller gave.")),
    memory.saved.length ? panel("Saved by the forward for the backward", rows(memory.saved)) : null,
    memory.recomputed.length ? panel("Recomputed by the backward", el("ul", {}, memory.recomputed.map((op) =>
      el("li", { class: "mono" }, op)))) : null);
  if (memory.live.length) {
    const colors = chartColors();
    const steps = memory.live.map((_, number) => number + 1);
    const plot = new uPlot({
      width: Math.max(320, chart.clientWidth || 800), height: 260, legend: { show: false },
      cursor: { points: { show: false }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: (u, low, high) => [0, Math.max(high, memory.arena_bytes) * 1.1 || 1] } },
      axes: [{ ...axis(colors, (u, ticks) => ticks.map((x) => (Number.isInteger(x) ? x : "")), 34) },
        { ...axis(colors, (u, ticks) => ticks.map((y) => bytes(y)), 78), incrs: Array.from({ length: 42 }, (_, n) => 2 ** n) }],
      series: [{}, { stroke: colors.accent, width: 2, fill: css("--accent-soft"), points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) },
        { stroke: colors.heat, width: 1.5, dash: [6, 4], points: { show: false } }],
    }, [steps, memory.live, steps.map(() => memory.arena_bytes)], chart);
    plot.over.addEventListener("mousemove", (event) => {
      const at = Math.round(plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x")) - 1;
      const step = profile.steps[program.steps[at]];
      if (step) showTip(event, "step " + (at + 1) + ": " + bytes(memory.live[at]), step.name + "  " + stepPlace(step));
    });
    plot.over.addEventListener("mouseleave", hideTip);
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", "Live bytes over " + memory.live.length + " steps, at most " + bytes(memory.peak_bytes));
    chart.append(el("p", { class: "soft" }, "Bytes alive at each step (intermediates, results, library tensors); dashed: the " +
      "arena that was planned for the intermediates."));
  }
});
