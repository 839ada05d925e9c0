// The compiler itself: what it cost, what it kept, and why it ran.

function guardBlock(guard, number) {
  return el("details", {}, el("summary", {}, "Program " + (number + 1) + ": " + guard.conditions + " conditions" +
      (guard.check_ns ? ", checked in " + time(guard.check_ns) : "")),
    plainTable("Conditions by line", ["read at", "conditions#", "of a check#"], guard.lines.slice(0, 60).map(
      ([line, count, ns]) => [el("span", { class: "mono" }, line), count, guard.check_ns ? time(ns) : ""])),
    codeBlock("The first " + guard.examples.length + " conditions", guard.examples.join("\n")));
}

register("compiler", "Compiler", (main, profile) => {
  const compiler = profile.compiler;
  const stages = Object.entries(compiler.stages);
  const whole = sum(stages, ([, seconds]) => seconds);
  main.append(el("div", { class: "cards" },
    card(time(1e9 * whole), "tracing and compiling, in this profile"),
    card(compiler.programs_compiled + " / " + compiler.programs_reused, "programs compiled / found compiled"),
    card(compiler.kernels_generated + " / " + compiler.kernels_reused, "kernels generated / found in the cache")));
  if (stages.length) {
    main.append(panel("Time by stage", plainTable("Stages", ["stage", "time#", ""], stages.map(([name, seconds]) => [
      name, time(1e9 * seconds), el("i", { class: "bar", style: "width:" + Math.round(400 * seconds / whole) + "px" })]))));
  }
  for (const each of compiler.objects) {
    const counters = Object.entries(each.counters).filter(([, count]) => count);
    main.append(panel(each.name,
      el("p", {}, counters.map(([name, count]) => [el("span", { class: "tag" }, name.replaceAll("_", " ") + ": " + count), " "])),
      each.recompiles.length ? [el("h3", {}, "Traced again, because"), el("ul", {}, each.recompiles.map(([cause, advice]) =>
        el("li", {}, el("b", {}, cause), el("div", { class: "soft" }, "To avoid it: " + advice))))] : null,
      Object.keys(each.eager).length ? [el("h3", {}, "Ran eagerly, because"), el("ul", {},
        Object.entries(each.eager).map(([reason, count]) => el("li", {}, count + "×: " + reason)))] : null,
      each.branches.length ? [el("h3", {}, "Branches on what tensors hold"), el("ul", {}, each.branches.map((line) =>
        el("li", { class: "mono" }, line)))] : null,
      each.guards.length ? [el("h3", {}, "Guards"), each.guards.map(guardBlock)] : null,
      each.not_fused.length ? el("details", {}, el("summary", {}, each.not_fused.length + " fusions that were not made"),
        el("ul", {}, each.not_fused.map((reason) => el("li", {}, reason)))) : null));
  }
  for (const program of profile.programs) {
    main.append(el("section", { class: "panel" }, el("h2", {}, program.name + ", " + program.phase),
      el("p", { class: "soft" }, program.runs + " runs, median " + time(program.median_ns) + ", " + program.steps.length + " steps"),
      codeBlock("Captured Graph", text(program.captured)), codeBlock("Optimized Graph", text(program.optimized)),
      codeBlock("Program", text(program.source))));
  }
});
