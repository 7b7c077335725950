/** Answers of an analysis besides its first: about one object, or about the whole image. */

import { html } from "./dom.js";
import { counted, title } from "./names.js";
import { shapesOf } from "./shapes.js";

/**
 * Return the answers about an object of the first step, or about the whole image; null without any.
 * @param {Record<string, any>[]} steps  of an analysis, without the first
 * @param {number} [index]  the object
 */
export function stepAnswers(steps, index) {
  const found = steps.flatMap((step) => step.answers.filter(({ of }) => of === index).map((one) => ({ step, one })));
  if (!found.length) return null;
  const lines = found.map(({ step, one }) =>
    html("div", {}, html("dt", {}, `${title(step.task)}, ${one.model}`), html("dd", {}, textOf(one))),
  );
  return html("dl", { class: "step-answers" }, ...lines);
}

/** @param {Record<string, any>} answer */
function textOf({ result, error }) {
  if (error) return error.message;
  if (result.text !== undefined) return result.text || "Empty text.";
  const shapes = shapesOf(result);
  return [counted(shapes.length, "object"), ...shapes.map(({ label }) => label)].join(", ");
}
