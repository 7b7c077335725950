/** Why a model gave no answer, and what can be done about it. */

import { html } from "./dom.js";
import { title } from "./names.js";

/**
 * @typedef {object} Remedies  what the page can do about an error
 * @property {(param: string) => void} change  go to the field
 * @property {(param: string) => string[]} instead  what may be given in its place
 * @property {() => void} again  ask this model again
 * @property {() => void} giveKey
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
 * Return the note of a model that does not offer the task.
 * @param {import("./api.js").Model} model
 * @param {string} task
 */
export function notOfferedNote(model, task) {
  const offered = model.tasks.map((id) => html("li", {}, html("a", { class: "pill", href: `#task=${id}` }, title(id))));
  return html(
    "div",
    { class: "note" },
    html("p", { class: "note-title" }, "Not offered"),
    html("p", {}, `${model.id} knows no prompt for ${title(task)}. It offers:`),
    html("ul", { class: "pills" }, ...offered),
  );
}

function remedy({ code, param }, { change, instead, again, giveKey }) {
  const button = (name, onclick) => html("button", { type: "button", class: "small", onclick }, name);
  if (code === "unauthorized") return button("Give an API key", giveKey);
  if (!param) return button("Try again", again);
  const others = instead(param).map((other) =>
    button(`Give ${title(other).toLowerCase()} instead`, () => change(other)),
  );
  return html(
    "div",
    { class: "remedies" },
    button(`Change ${title(param).toLowerCase()}`, () => change(param)),
    ...others,
  );
}
