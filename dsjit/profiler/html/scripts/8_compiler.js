// The compiler itself: what it cost, what it kept, and why it ran.

function guardBlock(guard, number) {
  return el("details", {}, el("summary", {}, "Program " + (number + 1) + ": " + guard.conditions + " conditions" +
      (guard.check_ns ? ", checked in " + time(guard.check_ns) : "")),
    plainTable("Conditions by line", ["read at", "conditions#", "of a check#"], guard.lines.slice(0, 60).map(
      ([line, count, ns]) => [el("span", { class: "mono" }, line), count, guard.check_ns ? time(ns) : ""])),
    codeBlock("The first " + guard.examples.length + " conditions", guard.examples.join("\n")));
}

// The ways of calls through a tree, as rows: each node below the one that its outcome came after.
function wayRows(nodes) {
  const rows = [];
  const seen = new Set();
  const visit = (number, depth, way) => {
    const again = seen.has(number);
    seen.add(number);
    rows.push({ node: nodes[number], depth, way, again });
    if (again) return;
    for (const next of nodes[number].ways) {
      if (!next.to.length) rows.push({ node: null, depth: depth + 1, way: next, again: false });
      for (const to of next.to) visit(to, depth + 1, next);
    }
  };
  visit(0, 0, null);
  return rows;
}

function wayTable(nodes, profile) {
  const rows = wayRows(nodes);
  const most = Math.max(1, ...nodes.flatMap((node) => node.ways.map((way) => way.count)));
  const what = ({ node, again }) => {
    if (!node) return el("span", { class: "soft" }, "not shown: the tree is large");
    if (again) return el("span", { class: "soft" }, "↺ back to look " + (node.number + 1));
    if (!node.look) return el("span", { class: "soft" }, "the result");
    return ["look " + (node.number + 1) + ": " + node.look + " ", lineLink(node.file, node.line)];
  };
  return plainTable("Ways of calls", ["way", "times#", "(as a bar)", "program"], rows.map((row) => [
    el("span", { class: "way", style: "padding-left:" + Math.min(row.depth, 14) * 22 + "px" },
      row.way ? [el("b", { class: "tag outcome" }, row.way.outcome), " → "] : null, what(row)),
    row.way ? row.way.count : "",
    row.way && row.way.count ? el("i", { class: "bar", style: "width:" + (90 * row.way.count) / most + "px" }) : "",
    row.node && !row.again && row.node.program >= 0 ? programText(profile.programs[row.node.program]) : ""]));
}

function programText(program) { return program.runs + " runs, median " + time(program.median_ns); }

register("compiler", "Compiler", (main, profile) => {
  const compiler = profile.compiler;
  const stages = Object.entries(compiler.stages);
  const whole = sum(stages, ([, seconds]) => seconds);
  main.append(el("div", { class: "cards" },
    card(time(1e9 * whole), "tracing and compiling, in this profile"),
    card(compiler.programs_compiled + " / " + compiler.programs_reused, "programs compiled / found compiled"),
    card(compiler.kernels_generated + " / " + compiler.kernels_reused, "kernels generated / found in the cache")));
  if (stages.length) {
    main.append(panel("Time by stage", plainTable("Stages", ["stage", "time#", "share#", "(as a bar)"], stages.map(([name, seconds]) => [
      name, time(1e9 * seconds), percent(seconds / whole),
      el("span", { class: "track" }, el("i", { class: "bar", style: "width:" + (100 * seconds) / whole + "%" }))]))));
  }
  for (const each of compiler.objects) {
    const counters = Object.entries(each.counters).filter(([, count]) => count);
    main.append(panel(each.name,
      el("p", {}, counters.map(([name, count]) => [el("span", { class: "tag" }, name.replaceAll("_", " ") + ": " + count), " "])),
      each.recompiles.length ? [el("h3", {}, "Traced again, because"), el("ul", {}, each.recompiles.map(([cause, advice]) =>
        el("li", {}, el("b", {}, cause), el("div", { class: "soft" }, "To avoid it: " + advice))))] : null,
      each.eager.length ? [el("h3", {}, "Ran eagerly, because"), el("ul", {},
        each.eager.map((reason) => el("li", {}, reason.count + "×: " + reason.reason + " ",
          reason.line ? lineLink(reason.file, reason.line) : null)))] : null,
      each.trees.map((nodes, number) => [el("h3", {}, "Ways of calls, by what tensors held" +
        (each.trees.length > 1 ? " (kind of call " + (number + 1) + " of " + each.trees.length + ")" : "")),
        wayTable(nodes, profile)]),
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
