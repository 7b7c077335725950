// The gallery: cards with the truth and every answer, filtered and sorted. All texts are set as text, never as HTML.
"use strict";
const NAMESPACE = "http://www.w3.org/2000/svg";
const cards = JSON.parse(document.querySelector("#cards").textContent);
const gallery = document.querySelector("#gallery");
const chosen = { sort: "difference", kind: "", class: "" };

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

function shape({ label, kind, rings, is_filled }, { width, height }) {
  const path = rings.map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("");
  const size = Math.max(width, height) / 24;
  const points = rings.flat();
  const x = Math.max(0, Math.min(width - size * label.length * 0.5, Math.min(...points.map((point) => point[0]))));
  const y = Math.max(size, Math.min(...points.map((point) => point[1])) - size / 4);
  const names = ["shape", kind.replace(" ", "-"), ...(is_filled ? ["is-filled"] : [])].join(" ");
  const text = drawn("text", { x, y, "font-size": size }, label);
  return drawn("g", { class: names }, drawn("path", { d: path }), text, drawn("title", {}, `${label}: ${kind}`));
}

function panel({ name, shapes, text }, card) {
  const { width, height } = card;
  const label = `${name}: ${shapes.map((each) => `${each.label} (${each.kind})`).join(", ") || text || "nothing"}`;
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  picture.append(drawn("image", { href: card.image, width, height, preserveAspectRatio: "none" }));
  picture.append(...shapes.map((each) => shape(each, card)));
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
  return (!chosen.kind || card.kinds.includes(chosen.kind)) && (!chosen.class || card.classes.includes(chosen.class));
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
filter("class", "Class", values("classes"));
key();
show();
