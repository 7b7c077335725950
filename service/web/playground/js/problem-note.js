/** Error notes of a panel, with buttons to fix the error. */

import { html } from "./dom.js";
import { title } from "./names.js";

/**
 * @typedef {object} Remedies  actions that may fix an error
 * @property {(param: string) => void} change  focus the field
 * @property {(param: string) => string[]} instead  alternatives of the parameter
 * @property {() => void} again  run this model again
 * @property {() => void} enterKey
 */

/**
 * Return the note of an error.
 * @param {any} error  an `ApiError`
 * @param {Remedies} remedies
 */
export function errorNote(error, remedies) {
  return html(
    "div",
    { class: "note failed", role: "alert" },
    html("p", { class: "note-title" }, title(error.code ?? "failed")),
    html("p", {}, error.message),
    remedy(error, remedies),
    error.requestId && html("p", { class: "quiet mono" }, `request ${error.requestId}`),
  );
}

/**
 * Return the note of a model that does not support the task.
 * @param {import("./api.js").Model} model
 * @param {string} task
 */
export function notSupportedNote(model, task) {
  const link = (id) => html("a", { class: "pill", href: `#task=${id}` }, title(id));
  const supported = model.tasks.map((id) => html("li", {}, link(id)));
  return html(
    "div",
    { class: "note" },
    html("p", { class: "note-title" }, "Not supported"),
    html("p", {}, `${model.id} does not support ${title(task)}. It supports:`),
    html("ul", { class: "pills" }, ...supported),
  );
}

function remedy({ code, param }, { change, instead, again, enterKey }) {
  const button = (name, onclick) => html("button", { type: "button", class: "small", onclick }, name);
  if (code === "unauthorized") return button("Enter an API key", enterKey);
  if (!param) return button("Try again", again);
  param = param.replace(/^steps\[\d+\]\./, ""); // options of the form are those of each step
  const others = instead(param).map((other) =>
    button(`Use ${title(other).toLowerCase()} instead`, () => change(other)),
  );
  return html(
    "div",
    { class: "control" },
    button(`Change ${title(param).toLowerCase()}`, () => change(param)),
    ...others,
  );
}
