// The user's source with the time of each line beside it.

let chosenFile = null;

register("source", "Source", (main, profile, target) => {
  const files = new Map();
  for (const line of profile.lines) files.set(line.file, (files.get(line.file) || 0) + line.ns);
  const names = [...files.keys()].sort((a, b) => files.get(b) - files.get(a));
  if (!names.length) {
    main.append(panel("Source", el("p", { class: "soft" }, "No compiled program ran.")));
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
    const known = costs.get(line.line);
    costs.set(line.line, known ? { ...known, ns: known.ns + line.ns, share: known.share + line.share,
      forward_ns: known.forward_ns + line.forward_ns, backward_ns: known.backward_ns + line.backward_ns,
      steps: [...new Set([...known.steps, ...line.steps])] } : line);
  }
  const hottest = Math.max(...[...costs.values()].map((line) => line.ns));
  const grid = el("div", { class: "source", role: "table", "aria-label": "Source of " + base(chosenFile) });
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  let marked = null;
  const parts = profile.sources.filter((part) => part.file === chosenFile).sort((a, b) => a.start - b.start);
  const drawn = parts.length ? parts : [...costs.values()].map((line) => ({ start: line.line, lines: [line.text] }));
  drawn.forEach((part, number) => {
    if (number) grid.append(el("div", { class: "gap" }, "⋯"));
    part.lines.forEach((code, offset) => {
      const at = part.start + offset;
      const cost = costs.get(at);
      const strength = cost ? Math.sqrt(cost.ns / hottest) : 0;
      const tint = cost ? "background:rgba(var(--heat)," + (0.5 * strength).toFixed(3) + ")" : "";
      const heat = cost
        ? el("button", { type: "button", class: "heat hot", style: tint, "aria-label": "Line " + at + ": " +
            time(cost.ns) + ", " + percent(cost.share), onclick: () => describe(cost) },
          time(cost.ns).padStart(9) + " " + percent(cost.share).padStart(6))
        : el("span", { class: "heat" }, "");
      const text_ = el("span", { class: "code", style: cost ? "background:rgba(var(--heat)," +
        (0.16 * strength).toFixed(3) + ")" : "" }, code || " ");
      grid.append(heat, el("span", { class: "no" }, at), text_);
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
  main.append(panel("Your source",
    el("div", { class: "controls" }, select, el("span", { class: "soft mono" }, chosenFile)), detail, grid));
  if (!detail.firstChild) {
    detail.append(el("span", { class: "soft" }, "Choose a time to see which fused ops the line is part of."));
  }
  if (marked) marked.scrollIntoView({ block: "center" });
});
