"use strict";
// Everything that comes from the profile is put into the page as text (textContent), never as markup.

const report = JSON.parse(document.getElementById("profile-data").textContent);
const texts = report.texts;
const views = [];
const state = { profile: report.profiles[0], view: null, target: null };

function text(number) { return number < 0 ? "" : texts[number]; }

// What would turn the direction of the text around it is spelled out.
function visible(string) {
  return string.replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => "<U+" + c.codePointAt(0).toString(16).toUpperCase() + ">");
}

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") node.className = value;
    else if (name === "style") node.style.cssText = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, visible(String(value)));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(visible(String(child))));
  }
  return node;
}

function panel(title, ...children) {
  return el("section", { class: "panel" }, title ? el("h2", {}, title) : null, ...children);
}

function significant(value) { return value >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, ""); }
function time(ns) {
  if (!ns) return "0";
  for (const [limit, unit] of [[1e3, "ns"], [1e6, "µs"], [1e9, "ms"]]) {
    if (Math.abs(ns) < limit) return significant(ns / (limit / 1e3)) + " " + unit;
  }
  return significant(ns / 1e9) + " s";
}
function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < 4) { count /= 1024; unit += 1; }
  return significant(count) + " " + units[unit];
}
function rate(value, unit) {
  const units = ["", "k", "M", "G", "T"];
  let step = 0;
  while (value >= 1000 && step < 4) { value /= 1000; step += 1; }
  return (value ? significant(value) : "0") + " " + units[step] + unit;
}
function percent(share) {
  if (!share) return "0 %";
  return (share < 0.1 ? (100 * share).toFixed(1) : (100 * share).toFixed(0)) + " %";
}
function base(file) { return file.split(/[\\/]/).pop(); }
function place(file, line) { return line ? base(file) + ":" + line : ""; }
function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function color(number) { return "var(--c" + (number % 11) + ")"; }
function sum(items, key) { return items.reduce((total, item) => total + key(item), 0); }

function mainOp(step) { return step.ops.reduce((a, b) => (a && a.share >= b.share ? a : b), null); }
function stepPlace(step) {
  const op = mainOp(step);
  if (!op || !op.line) return "";
  const others = new Set(step.ops.map((each) => each.file + ":" + each.line)).size - 1;
  return place(op.file, op.line) + (others ? " +" + others : "");
}
function attained(step) { return step.median_ns && step.bound !== "nothing" ? step.bound_ns / step.median_ns : null; }

// A table that sorts by its columns and shows some rows at a time.
// columns: {title, value(row) to sort by, show(row) text or node, number}. detail(row): a node, made when it is opened.
function sortedTable({ label, columns, rows, sortBy, detail, key, batch = 150 }) {
  let order = sortBy;
  let ascending = false;
  let shown = batch;
  let query = "";
  const open = new Set();
  const head = el("tr", {});
  const body = el("tbody", {});
  const more = el("button", { type: "button", class: "plain", onclick: () => { shown += 1000; draw(); } });
  const count = el("span", { class: "soft", role: "status" });
  const search = el("input", { type: "search", placeholder: "Filter by name, op, line or module",
    "aria-label": "Filter " + label, oninput: () => { query = search.value.toLowerCase(); draw(); } });
  const haystack = new Map();
  function matches(row) {
    if (!query) return true;
    if (!haystack.has(row)) haystack.set(row, key(row).toLowerCase());
    return haystack.get(row).includes(query);
  }
  function drawHead() {
    head.replaceChildren(...columns.map((column, number) => {
      const sorted = number === order ? (ascending ? "ascending" : "descending") : null;
      const flip = () => { ascending = number === order ? !ascending : !column.number; order = number; draw(); };
      return el("th", { class: column.number ? "n" : "", scope: "col", "aria-sort": sorted },
        el("button", { type: "button", onclick: flip }, column.title));
    }));
  }
  function draw() {
    drawHead();
    const column = columns[order];
    const found = rows.filter(matches).sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      const compared = x < y ? -1 : x > y ? 1 : 0;
      return ascending ? compared : -compared;
    });
    const drawn = [];
    for (const row of found.slice(0, shown)) {
      const cells = columns.map((each, number) => {
        const content = each.show(row);
        if (number || !detail) return el("td", { class: each.number ? "n" : "" }, content);
        const toggle = () => { open.has(row) ? open.delete(row) : open.add(row); draw(); };
        return el("td", {}, el("button", { type: "button", class: "link mono", "aria-expanded": String(open.has(row)),
          onclick: toggle }, content));
      });
      drawn.push(el("tr", { class: open.has(row) ? "row open" : "row" }, cells));
      if (open.has(row)) drawn.push(el("tr", {}, el("td", { colspan: columns.length }, detail(row))));
    }
    body.replaceChildren(...drawn);
    count.textContent = found.length === rows.length ? rows.length + " rows" : found.length + " of " + rows.length + " rows";
    more.hidden = found.length <= shown;
    more.textContent = "Show " + Math.min(1000, found.length - shown) + " more";
  }
  draw();
  return {
    node: el("div", {}, el("div", { class: "controls" }, search, count),
      el("table", { "aria-label": label }, el("thead", {}, head), body), el("p", {}, more)),
    openOnly(wanted) {
      open.clear();
      for (const row of wanted) open.add(row);
      query = ""; search.value = "";
      const others = rows.filter((row) => !open.has(row));
      rows = [...wanted, ...others];
      draw();
      body.prepend(...[...body.querySelectorAll("tr.open")].flatMap((row) => [row, row.nextElementSibling]));
    },
  };
}

// titles: "#" at the end is a column of numbers; in brackets, a title that only screen readers tell.
function plainTable(label, titles, rows) {
  return el("table", { "aria-label": label },
    el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col", class: title.endsWith("#") ? "n" : "" },
      title.startsWith("(") ? el("span", { class: "sr" }, title.slice(1, -1)) : title.replace(/#$/, ""))))),
    el("tbody", {}, rows.map((row) => el("tr", { class: "row" },
      row.map((cell, number) => el("td", { class: titles[number].endsWith("#") ? "n" : "" }, cell))))));
}

const tip = el("div", { class: "tip", hidden: "" });
function showTip(event, ...lines) {
  tip.replaceChildren(...lines.map((line) => el("div", {}, line)));
  tip.hidden = false;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
}
function hideTip() { tip.hidden = true; }

function register(name, title, draw) { views.push({ name, title, draw }); }

function show(name, target) {
  const view = views.find((each) => each.name === name) || views[0];
  state.view = view.name;
  state.target = target || null;
  hideTip();
  for (const tab of document.querySelectorAll("#tabs button")) {
    const chosen = tab.dataset.view === view.name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  const body = document.getElementById("view");
  body.setAttribute("aria-labelledby", "tab-" + view.name);
  body.replaceChildren();
  view.draw(body, state.profile, state.target);
}

function goToLine(file, line) { show("source", { file, line }); }
function goToSteps(numbers) { show("steps", { steps: numbers }); }

function lineLink(file, line) {
  if (!line) return el("span", { class: "soft" }, "no line");
  return el("button", { type: "button", class: "link mono line", title: file, onclick: () => goToLine(file, line) },
    place(file, line));
}
