// What to look at first, and where the time went.

function card(value, label) { return el("div", { class: "card" }, el("b", {}, value), el("span", {}, label)); }

function findingItem(finding) {
  return el("li", { "data-kind": finding.kind },
    el("strong", {}, finding.title), el("p", {}, finding.text),
    finding.line ? lineLink(finding.file, finding.line) : null,
    finding.steps.length ? el("button", { type: "button", class: "link", onclick: () => goToSteps(finding.steps) },
      finding.steps.length === 1 ? "the step" : "the " + finding.steps.length + " steps") : null,
    ["recompile", "eager"].includes(finding.kind) ? el("button", { type: "button", class: "link",
      onclick: () => show("compiler") }, "the compiler's view") : null);
}

function stackedParts(parts) {
  const some = parts.filter((part) => part.ns > 0);
  const whole = sum(some, (part) => part.ns) || 1;
  return [
    el("div", { class: "stack", role: "img", "aria-label": some.map((p) => p.name + " " + percent(p.share)).join(", ") },
      some.map((part) => el("i", { style: "flex:" + part.ns / whole + " 0 0;background:" + color(parts.indexOf(part)),
        onmousemove: (event) => showTip(event, part.name + ": " + time(part.ns), part.meaning), onmouseleave: hideTip }))),
    plainTable("Parts of the time", ["part", "time#", "share#"], some.map((part) => [
      el("span", { title: part.meaning }, el("i", { class: "swatch", style: "background:" + color(parts.indexOf(part)) }),
        part.name), time(part.ns), percent(part.share)])),
  ];
}

register("overview", "Overview", (main, profile) => {
  const peak = profile.programs.reduce((most, program) => Math.max(most, program.memory.peak_bytes), 0);
  const kernels = profile.steps.filter((step) => step.kind === "kernel").length;
  const lines = profile.compiled_ns ? profile.attributed_ns / profile.compiled_ns : 0;
  main.append(
    el("div", { class: "cards" },
      card(time(profile.span_ns), "profiled"),
      card(percent(profile.span_ns ? profile.compiled_ns / profile.span_ns : 0), "of it in compiled programs"),
      card(percent(lines), "of that on lines of your source"),
      card(kernels + " + " + (profile.steps.length - kernels), "fused ops and library calls"),
      card(bytes(peak), "most memory for intermediates")),
    el("div", { class: "two" },
      el("div", {}, panel("What to look at first", profile.findings.length
        ? el("ol", { class: "findings" }, profile.findings.map(findingItem))
        : el("p", { class: "soft" }, "Nothing stands out: no line costs much more than this machine needs for it.")),
      panel("The most expensive lines", plainTable("Lines", ["line", "time#", "share#", "(forward and backward)", "code"],
        profile.lines.slice(0, 12).map((line) => [lineLink(line.file, line.line), time(line.ns), percent(line.share),
          phaseBar(line, profile.lines[0].ns), el("code", {}, line.text.trim())])),
        profile.lines.some((line) => line.backward_ns) ? phaseLegend() : null),
      profile.sampled.length ? panel("What ran while no program did", sampledTable(profile.sampled.slice(0, 12)),
        el("p", { class: "soft" }, "By samples: lines of eager calls, and of what is outside jitted calls.")) : null),
      el("div", {}, panel("Where the time went", ...stackedParts(profile.parts)),
        panel("Calls", plainTable("Calls of jitted objects", ["object", "ran", "calls#", "median#", "total#"],
          profile.calls.map((call) => [call.name, el("span", { class: "tag" }, call.kind), call.count,
            time(call.median_ns), time(call.total_ns)]))),
        machinePanel(profile.machine))));
});

// Forward and backward of a line, as parts of the longest one.
function phaseBar(line, most) {
  const part = (ns, paint) => (ns ? el("i", { style: "width:" + (64 * ns) / most + "px;background:var(" + paint + ")" }) : null);
  return el("span", { class: "phases", role: "img", "aria-label": "forward " + time(line.forward_ns) + ", backward " +
    time(line.backward_ns), onmousemove: (event) => showTip(event, "forward " + time(line.forward_ns), "backward " +
    time(line.backward_ns)), onmouseleave: hideTip }, part(line.forward_ns, "--forward"), part(line.backward_ns, "--backward"));
}

function phaseLegend() {
  return el("p", { class: "legend" }, el("span", {}, el("i", { class: "swatch", style: "background:var(--forward)" }), "forward"),
    el("span", {}, el("i", { class: "swatch", style: "background:var(--backward)" }), "backward"));
}

function sampledTable(lines) {
  return plainTable("Sampled lines", ["line", "time#", "share#", "what", "code"], lines.map((line) => [
    lineLink(line.file, line.line), time(line.ns), percent(line.share),
    el("span", {}, line.what, " ", line.part === "eager calls" ? el("span", { class: "tag" }, "eager call") : null),
    el("code", {}, line.text.trim())]));
}

function machinePanel(machine) {
  const [small, large] = [machine.bandwidth[0][1], machine.bandwidth[machine.bandwidth.length - 1][1]];
  return panel("This machine",
    el("p", {}, machine.processor + ", " + machine.threads + (machine.threads === 1 ? " thread" : " threads") + ", torch " + machine.torch),
    plainTable("What the machine attains", ["measured", "attains#"], [
      ["bytes from memory", rate(large, "B/s")], ["bytes from the caches", rate(small, "B/s")],
      ...Object.entries(machine.flops).map(([dtype, flops]) => [dtype + " products", rate(flops, "FLOP/s")])]));
}
