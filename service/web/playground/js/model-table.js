/** Table of the catalog. A cell "Demo" links to a task; a model that is not served has its command instead. */

import { copyButton } from "./copy-buttons.js";
import { fill, html } from "./dom.js";
import { compact, title } from "./names.js";

/** Fields of GET /v1/models?catalog=true in the order of the public comparison; a missing one is an empty cell. */
const ROWS = [
  "organization",
  "category",
  "modality",
  "release_date",
  "context_window",
  "parameters",
  "license",
  "resolution",
  "precision",
  "features",
  "adapter_of",
];
const UNITS = { context_window: "tokens", resolution: "px" };

/**
 * @param {HTMLTableElement} table
 * @param {import("./api.js").Model[]} models
 * @param {import("./api.js").Task[]} tasks
 */
export function showModelTable(table, models, tasks) {
  const head = html("tr", {}, html("td", {}), ...models.map(({ id }) => html("th", { scope: "col" }, id)));
  const state = row("To serve it", models.map(command));
  const rows = ROWS.filter((name) => name !== "adapter_of" || models.some((model) => model.adapter_of));
  const facts = rows.map((name) =>
    row(
      title(name),
      models.map((model) => shown(name, model[name])),
    ),
  );
  const offers = tasks.map((task) =>
    row(
      title(task.id),
      models.map((model) => demo(model, task)),
    ),
  );
  const divider = html(
    "tr",
    { class: "divider" },
    html("th", { scope: "colgroup", colspan: models.length + 1 }, "Tasks"),
  );
  fill(table, html("thead", {}, head), html("tbody", {}, state, ...facts), html("tbody", {}, divider, ...offers));
}

function row(name, cells) {
  return html("tr", {}, html("th", { scope: "row" }, name), ...cells.map((cell) => html("td", {}, cell)));
}

function command({ id, served, serve_command: text }) {
  if (served) return "served here";
  const copy = copyButton("Copy", () => text);
  copy.setAttribute("aria-label", `Copy the command that serves ${id}`);
  return html("div", { class: "command" }, html("code", {}, text), copy);
}

function demo(model, task) {
  if (!model.tasks.includes(task.id)) return html("span", { class: "quiet" }, "not offered");
  if (!model.served) return "offered";
  return html("a", { class: "pill", href: `#task=${task.id}`, "aria-label": `Demo of ${title(task.id)}` }, "Demo");
}

function shown(name, value) {
  if (Array.isArray(value)) return html("ul", { class: "features" }, ...value.map((each) => html("li", {}, each)));
  if (typeof value === "number" && value) return `${name === "parameters" ? compact(value) : value} ${UNITS[name] ?? ""}`.trim();
  return value || "";
}
