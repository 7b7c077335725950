/** Buttons that copy an answer, or its request as code. */

import { apiKey } from "./api-key.js";
import { html } from "./dom.js";
import { filledSteps } from "./recipes.js";
import { curlCommand, pythonProgram } from "./snippets.js";

const SHOWN_MS = 1600;

/**
 * @param {import("./api.js").Answer} answer
 * @param {import("./run.js").Question} question
 */
export function copyButtons(answer, { image, task, fields }) {
  const request = {
    url: `${location.origin}/v1/${task.steps ? "analyze" : "predict"}`,
    imageName: image.name,
    fields: task.steps
      ? { steps: filledSteps(task.steps, fields) }
      : { task: task.id, model: answer.model, ...fields },
    needsKey: apiKey() !== null,
  };
  return html(
    "div",
    { class: "copy", role: "group", "aria-label": "Copy" },
    html("span", { class: "overline" }, "Copy as"),
    copyButton("JSON", () => JSON.stringify(answer.analysis ?? answer, null, 2)),
    copyButton("curl", () => curlCommand(request)),
    copyButton("Python", () => pythonProgram(request)),
  );
}

/**
 * Return a button that copies a text and confirms it briefly.
 * @param {string} name
 * @param {() => string} text
 * @param {() => string} confirmation
 */
export function copyButton(name, text, confirmation = () => "Copied") {
  const label = html("span", { "aria-live": "polite" }, name);
  const copy = async () => {
    label.textContent = await navigator.clipboard.writeText(text()).then(
      confirmation,
      () => "Not allowed",
    );
    setTimeout(() => (label.textContent = name), SHOWN_MS);
  };
  return html("button", { type: "button", class: "small", "data-copy": name, onclick: copy }, label);
}
