// The user's source with the time of each line beside it.

let chosenFile = null;

register("source", "Source", (main, profile, target) => {
  const files = new Map();
  for (const line of [...profile.lines, ...profile.sampled]) {
    if (line.line) files.set(line.file, (files.get(line.file) || 0) + line.ns);
  }
  const names = [...files.keys()].sort((a, b) => files.get(b) - files.get(a));
  if (!names.length) {
    main.append(panel("Source", el("p", { class: "soft" }, "Nothing that ran has a line.")));
    return;
  }
  if (target && files.has(target.file)) chosenFile = target.file;
  if (!files.has(chosenFile)) chosenFile = names[0];
  const select = el("select", { "aria-label": "File", onchange: () => { chosenFile = select.value; show("source"); } },
    names.map((name) => el("option", { value: name }, base(name) + " · " + time(files.get(name)))));
  select.value = chosenFile;
  const costs = new Map();
  for (const line of profile.lines) {
    if (line.file !== chosenFile) continue;
    const met = costs.get(line.line);
    costs.set(line.line, met ? { ...met, ns: met.ns + line.ns, share: met.share + line.share,
      forward_ns: met.forward_ns + line.forward_ns, backward_ns: met.backward_ns + line.backward_ns,
      steps: [...new Set([...met.steps, ...line.steps])] } : line);
  }
  const others = new Map();
  for (const line of profile.sampled) {
    if (line.file === chosenFile) others.set(line.line, [...(others.get(line.line) || []), line]);
  }
  const otherNs = (at) => sum(others.get(at) || [], (line) => line.ns);
  const hottest = Math.max(1, ...[...costs.values()].map((line) => line.ns), ...[...others.keys()].map(otherNs));
  const training = [...costs.values()].some((line) => line.backward_ns);
  const grid = el("div", { class: others.size ? "source sampled" : "source" });
  grid.append(el("span", { class: "head" }, "compiled"), others.size ? el("span", { class: "head" }, "other") : "",
    el("span", { class: "head no" }, "line"), el("span", { class: "head file" }, base(chosenFile)));
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  let marked = null;
  const parts = profile.sources.filter((part) => part.file === chosenFile).sort((a, b) => a.start - b.start);
  const known = [...costs.values(), ...[...others.values()].map((lines) => lines[0])].sort((a, b) => a.line - b.line);
  const drawn = parts.length ? parts : known.map((line) => ({ start: line.line, lines: [line.text] }));
  drawn.forEach((part, number) => {
    if (number) grid.append(el("div", { class: "gap" }, "⋯"));
    part.lines.forEach((code, offset) => {
      const at = part.start + offset;
      const cost = costs.get(at);
      const strengthOf = (ns) => Math.sqrt(ns / hottest);
      const tintOf = (ns, most) => "background:rgba(var(--heat)," + (most * strengthOf(ns)).toFixed(3) + ")";
      const all = (cost ? cost.ns : 0) + otherNs(at);
      const heat = cost
        ? el("button", { type: "button", class: "heat hot", style: tintOf(cost.ns, 0.5), onclick: () => describe(cost) },
          training ? phaseBar(cost, hottest) : el("span", {}), el("span", {}, el("span", { class: "sr" }, "Line " + at + ": "),
            time(cost.ns)), el("span", {}, " " + percent(cost.share)))
        : el("span", { class: "heat" }, "");
      const other = others.get(at);
      const sampled = other ? el("button", { type: "button", class: "heat", style: tintOf(otherNs(at), 0.5), onclick: () => describeOther(other) },
        el("span", {}, el("span", { class: "sr" }, "Line " + at + ", not compiled: "), time(otherNs(at)))) : el("span", { class: "heat" }, "");
      const text_ = el("span", { class: "code", style: all ? tintOf(all, 0.16) : "" }, code || " ");
      grid.append(heat, others.size ? sampled : "", el("span", { class: "no" }, at), text_);
      if (target && target.line === at) { marked = text_; text_.classList.add("target"); if (cost) describe(cost); }
    });
  });
  function describe(cost) {
    const steps = cost.steps.map((number) => profile.steps[number]).sort((a, b) => b.total_ns - a.total_ns);
    detail.replaceChildren(
      el("b", { class: "mono" }, place(cost.file, cost.line)), " in " + cost.function + ": " + time(cost.ns) + ", " +
        percent(cost.share) + " of the profile (forward " + time(cost.forward_ns) + ", backward " +
        time(cost.backward_ns) + "). It is part of: ",
      ...steps.slice(0, 8).map((step) => el("button", { type: "button", class: "link mono",
        onclick: () => goToSteps([step.number]) }, step.name + " (" + time(step.total_ns) + ")")),
      steps.length > 8 ? el("button", { type: "button", class: "link", onclick: () => goToSteps(cost.steps) },
        "all " + steps.length) : "");
  }
  function describeOther(lines) {
    detail.replaceChildren(el("b", { class: "mono" }, place(lines[0].file, lines[0].line)), " in " + lines[0].function +
      ": " + lines.map((line) => time(line.ns) + " of " + line.part + " (" + line.what + ", " + line.samples +
      (line.samples === 1 ? " sample)" : " samples)")).join(", ") + ".");
  }
  const scroller = el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Source of " + base(chosenFile) }, grid);
  main.append(panel("Your source",
    el("div", { class: "controls" }, select, el("span", { class: "soft mono path" }, chosenFile),
      training ? phaseLegend() : null), detail, scroller));
  if (!detail.firstChild) {
    detail.append(el("span", { class: "soft" }, "Choose a time to see which fused ops the line is part of."));
  }
  if (marked) marked.scrollIntoView({ block: "center" });
});
