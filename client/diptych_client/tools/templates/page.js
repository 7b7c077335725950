// The gallery: cards with the truth and every answer, filtered and sorted. All texts are set as text, never as HTML.
"use strict";
const NAMESPACE = "http://www.w3.org/2000/svg";
const cards = JSON.parse(document.querySelector("#cards").textContent);
const gallery = document.querySelector("#gallery");
const chosen = { sort: "difference", kind: "" };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Above the shape, below it, or in it: the first place that no other label has.
function labelPlace(points, label, { width, height }, taken) {
  const size = Math.max(width, height) / 24;
  const length = size * label.length * 0.6;
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const x = Math.max(0, Math.min(width - length, Math.min(...xs)));
  const above = Math.min(...ys) - size / 4;
  const lines = [above, Math.max(...ys) + size, above + size * 1.25].map((y) => Math.max(size, Math.min(height, y)));
  const isApart = (other, y) => Math.abs(other.y - y) >= size || other.x >= x + length || x >= other.x + other.length;
  const y = lines.find((line) => taken.every((other) => isApart(other, line))) ?? lines[0];
  taken.push({ x, y, length });
  return { x, y, "font-size": size };
}

function shape({ label, kind, rings, is_filled }, card, taken) {
  const d = rings.map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("");
  const names = ["shape", kind.replace(" ", "-"), ...(is_filled ? ["is-filled"] : [])].join(" ");
  const lines = ["under", "line"].map((name) => drawn("path", { d, class: name }));
  const text = drawn("text", labelPlace(rings.flat(), label, card, taken), label);
  return drawn("g", { class: names }, ...lines, text, drawn("title", {}, `${label}: ${kind}`));
}

function panel({ name, shapes, text }, card) {
  const { width, height } = card;
  const label = `${name}: ${shapes.map((each) => `${each.label} (${each.kind})`).join(", ") || text || "nothing"}`;
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  picture.append(drawn("image", { href: card.image, width, height, preserveAspectRatio: "none" }));
  const taken = [];
  picture.append(...shapes.map((each) => shape(each, card, taken)));
  const made = element("figure", { class: "panel" }, element("figcaption", {}, name), picture);
  if (text) made.append(element("pre", {}, text));
  return made;
}

function article(card) {
  const numbers = [`error ${card.error.toFixed(2)}`, `disagreement ${card.disagreement.toFixed(2)}`];
  const title = element("h3", {}, `${card.title} `, element("small", {}, [...numbers, ...card.kinds].join(" · ")));
  const panels = element("div", { class: "panels" }, ...card.panels.map((each) => panel(each, card)));
  return element("article", { class: "card" }, title, panels);
}

function isShown(card) {
  return !chosen.kind || card.kinds.includes(chosen.kind);
}

function compare(first, second) {
  if (chosen.sort === "name") return first.title.localeCompare(second.title);
  return second[chosen.sort] - first[chosen.sort] || first.title.localeCompare(second.title);
}

function show() {
  const shown = cards.filter(isShown).sort(compare);
  gallery.querySelector(".count").textContent = `${shown.length} of ${cards.length} images of the gallery`;
  gallery.querySelector(".cards").replaceChildren(...shown.map(article));
}

function filter(name, title, options) {
  const select = element("select", { name }, ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen[name];
  select.addEventListener("change", () => {
    chosen[name] = select.value;
    show();
  });
  gallery.querySelector(".filters").append(element("label", {}, title, select));
}

function key() {
  const kinds = [...new Set(cards.flatMap((card) => card.panels.flatMap((each) => each.shapes.map(({ kind }) => kind))))];
  const entries = kinds.map((kind) => element("span", {}, element("i", { class: kind.replace(" ", "-") }), kind));
  gallery.querySelector(".filters").after(element("div", { class: "key" }, ...entries));
}

function values(name) {
  const all = [...new Set(cards.flatMap((card) => card[name]))].sort();
  return [["", "all"], ...all.map((value) => [value, value])];
}

chosen.sort = ["difference", "error", "disagreement"].find((name) => cards.some((card) => card[name] > 0)) ?? "name";
filter("sort", "Sort by", [["difference", "difference of the models"], ["error", "error"], ["disagreement", "disagreement"], ["name", "name"]]);
filter("kind", "Kind", values("kinds"));
key();
show();
