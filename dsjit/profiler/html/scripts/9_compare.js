// Two profiles side by side, and the start of the page.

function change(before, after) {
  if (!before || !after) return el("span", { class: "soft" }, before ? "gone" : after ? "new" : "");
  const ratio = after / before;
  const kind = ratio < 0.97 ? "better" : ratio > 1.03 ? "worse" : "soft";
  return el("span", { class: kind }, (ratio < 1 ? "" : "+") + (100 * (ratio - 1)).toFixed(0) + " %");
}

function compareTable(label, rows, what) {
  const ns = (title, of) => ({ title, value: of, show: (row) => time(of(row)), number: true });
  return sortedTable({ label, rows, sortBy: 4, key: (row) => row.name, columns: [
    { title: what, value: (row) => row.name, show: (row) => el("span", { class: "mono" }, row.name) },
    ns("Before", (row) => row.before_ns), ns("After", (row) => row.after_ns),
    { title: "Change", value: (row) => (row.before_ns ? row.after_ns / row.before_ns : 9e9),
      show: (row) => change(row.before_ns, row.after_ns), number: true },
    { title: "Difference", value: (row) => Math.abs(row.after_ns - row.before_ns),
      show: (row) => (row.after_ns < row.before_ns ? "−" : "+") + time(Math.abs(row.after_ns - row.before_ns)), number: true },
  ] }).node;
}

if (report.comparison) {
  register("compare", "Comparison", (main) => {
    const { before, after, parts, lines, steps, modules, words } = report.comparison;
    const most = Math.max(...parts.flatMap((part) => [part.before_ns, part.after_ns]), 1);
    const bar = (ns, paint) => el("i", { class: "bar", style: "width:" + (86 * ns) / most + "%;background:var(" + paint + ")" });
    main.append(
      el("div", { class: "cards" }, card(time(before.call_ns), before.title + ", a call"),
        card(time(after.call_ns), after.title + ", a call"), card(change(before.call_ns, after.call_ns), "change")),
      panel("In words", el("ol", { class: "findings" }, words.map((line) => el("li", {}, el("strong", {}, line))))),
      panel("Where the time of a call goes", ...parts.filter((part) => part.before_ns || part.after_ns).map((part) =>
        el("div", { class: "pair" }, el("span", {}, part.name),
          el("div", {}, el("div", {}, bar(part.before_ns, "--c10"), " ", el("span", { class: "soft" }, time(part.before_ns))),
            el("div", {}, bar(part.after_ns, "--accent"), " ", time(part.after_ns))),
          change(part.before_ns, part.after_ns)))),
      panel("Lines, a call", compareTable("lines", lines, "Line")),
      panel("Modules, a call", compareTable("modules", modules, "Module")),
      panel("Fused ops, a call", compareTable("fused ops", steps, "Fused op")));
  });
}

function start() {
  const root = document.documentElement;
  if (report.comparison) views.unshift(views.pop());
  document.body.append(tip);
  const title = document.getElementById("title");
  title.textContent = visible(title.textContent);
  const tabs = document.getElementById("tabs");
  tabs.append(...views.map((view) => el("button", { type: "button", role: "tab", "data-view": view.name, id: "tab-" + view.name,
    "aria-controls": "view", onclick: () => show(view.name) }, view.title)));
  tabs.addEventListener("keydown", (event) => {
    const names = views.map((view) => view.name);
    const at = names.indexOf(state.view);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + names.length, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    const next = names[to % names.length];
    event.preventDefault();
    show(next);
    tabs.querySelector('[data-view="' + next + '"]').focus();
  });
  if (report.profiles.length > 1) {
    const which = document.getElementById("which");
    which.className = "pills";
    const draw = () => which.replaceChildren(...report.profiles.map((profile) => el("button", { type: "button",
      "aria-pressed": String(profile === state.profile),
      onclick: () => { state.profile = profile; draw(); show(state.view); } }, profile.title)));
    draw();
  }
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    show(state.view, state.target);
  });
  let wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; show(state.view, state.target); } });
  addEventListener("beforeprint", drawAll);
  addEventListener("afterprint", () => {
    root.dataset.theme = themeBefore;
    show(state.view, state.target);
  });
  show(views[0].name);
}

// Paper has no tabs: every view, one after the other, in the colours of light.
function drawAll() {
  const root = document.documentElement;
  themeBefore = root.dataset.theme || "";
  root.dataset.theme = "light";
  const body = document.getElementById("view");
  body.replaceChildren();
  for (const view of views) {
    const section = el("section", { class: "page" }, el("h2", { class: "page-title" }, view.title));
    body.append(section);
    view.draw(section, state.profile, null);
  }
}

let themeBefore = "";

start();
