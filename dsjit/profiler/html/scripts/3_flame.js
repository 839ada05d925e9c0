// Time by module, or by source: a node is as wide as its time, and lies below what it is part of.

const ROW = 25;
let flameMode = "modules";

function flameTree(profile, mode) {
  const root = { name: "all compiled time", ns: 0, forward: 0, backward: 0, children: new Map(), steps: new Set() };
  for (const step of profile.steps) {
    const phase = profile.programs[step.program].phase;
    for (const op of step.ops) {
      const ns = op.share * (step.total_ns + step.launch_ns);
      if (!ns) continue;
      const where = op.line ? place(op.file, op.line) : "no line";
      const path = mode === "modules"
        ? [...(op.scope ? op.scope.split(".") : []), where + " " + op.function, op.op]
        : [op.line ? base(op.file) : "no file", op.function || "?", where, op.op];
      let node = root;
      for (const [depth, name] of ["", ...path].entries()) {
        if (depth) {
          if (!node.children.has(name)) {
            node.children.set(name, { name, ns: 0, forward: 0, backward: 0, children: new Map(), steps: new Set() });
          }
          node = node.children.get(name);
        }
        node.ns += ns;
        node[phase] += ns;
        node.steps.add(step.number);
        if (name === where || name === where + " " + op.function) { node.file = op.file; node.line = op.line; }
      }
    }
  }
  return root;
}

function paint(name, shade) { return "color-mix(in oklab, var(" + name + ") " + shade + "%, var(--depth))"; }

register("flame", "Flame", (main, profile) => {
  const holder = el("div", { class: "flame", role: "tree", "aria-label": "Time by " + flameMode });
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  const root = flameTree(profile, flameMode);
  let zoomed = root;
  let parents = new Map();
  function describe(node) {
    detail.replaceChildren(
      el("b", { class: "mono" }, node.name), " ",
      el("span", {}, time(node.ns) + ", " + percent(node.ns / (root.ns || 1)) + " of the compiled time"),
      node.backward ? el("span", { class: "soft" }, "  (forward " + time(node.forward) + ", backward " +
        time(node.backward) + ")") : null,
      el("div", {}, node.line ? lineLink(node.file, node.line) : null,
        el("button", { type: "button", class: "link", onclick: () => goToSteps([...node.steps].slice(0, 30)) },
          node.steps.size === 1 ? "its step" : "its " + node.steps.size + " steps")));
  }
  function draw() {
    parents = new Map();
    const nodes = [];
    let deepest = 0;
    const ancestors = [];
    for (let node = zoomed; node !== root; node = node.parent) ancestors.unshift(node.parent);
    const place_ = (node, left, width, depth, dim) => {
      if (width < 0.0012) return;
      deepest = Math.max(deepest, depth);
      const forward = Math.round(node.ns ? (100 * node.forward) / node.ns : 100);
      const shade = 84 + ((depth * 7 + node.name.length * 5) % 3) * 8;
      const button = el("button", { type: "button", class: dim ? "node dim" : "node", role: "treeitem",
        "aria-level": depth + 1, "aria-label": node.name + ", " + time(node.ns) + ", " + percent(node.ns / (root.ns || 1)),
        style: "left:" + (100 * left).toFixed(4) + "%;width:calc(" + (100 * width).toFixed(4) + "% - 1px);top:" +
          depth * ROW + "px;background:linear-gradient(90deg," + paint("--forward", shade) + " " + forward + "%," +
          paint("--backward", shade) + " " + forward + "%)" + (width < 0.02 ? ";padding:0" : ""),
        onclick: () => { zoomed = node; draw(); describe(node); },
        onfocus: () => describe(node),
        onmousemove: (event) => showTip(event, node.name, time(node.ns) + " · " + percent(node.ns / (root.ns || 1))),
        onmouseleave: hideTip }, width > 0.02 ? node.name : "");
      nodes.push(button);
      let at = left;
      if (dim) return;
      for (const child of [...node.children.values()].sort((a, b) => b.ns - a.ns)) {
        child.parent = node;
        const share = width * (child.ns / (node.ns || 1));
        place_(child, at, share, depth + 1, false);
        at += share;
      }
    };
    ancestors.forEach((node, depth) => place_(node, 0, 1, depth, true));
    place_(zoomed, 0, 1, ancestors.length, false);
    holder.style.height = (deepest + 1) * ROW + "px";
    holder.replaceChildren(...nodes);
  }
  holder.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in moves)) return;
    const all = [...holder.children];
    const next = all[all.indexOf(document.activeElement) + moves[event.key]];
    if (next) { next.focus(); event.preventDefault(); }
  });
  const pill = (mode, title) => el("button", { type: "button", "aria-pressed": String(flameMode === mode),
    onclick: () => { flameMode = mode; show("flame"); } }, title);
  main.append(panel("Compiled time, forward and backward",
    el("div", { class: "controls" },
      el("span", { class: "pills", role: "group", "aria-label": "Divide by" }, pill("modules", "by module"),
        pill("source", "by source")),
      el("button", { type: "button", class: "plain", onclick: () => { zoomed = root; draw(); describe(root); } },
        "Whole"),
      phaseLegend(),
      el("span", { class: "soft" }, "Click a node to zoom; arrow keys move.")),
    detail, holder));
  draw();
  describe(root);
});
