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

/**
 * Return how many answers are there, of how many once the objects of the first step are known.
 * @param {Record<string, any>[]} steps  of the request, with their answers so far
 * @param {number} numObjects
 */
export function progress(steps, numObjects) {
  const sum = (count) => steps.reduce((total, step) => total + count(step), 0);
  const num = sum(({ answers }) => answers.length);
  const all = sum(({ each, models = [each] }) => models.length * (each ? numObjects : 1));
  const text = steps[0].answers.length ? `${num} of ${counted(all, "answer")}` : `${counted(num, "answer")} so far`;
  return html("p", { class: "quiet" }, text);
}

/** @param {Record<string, any>} answer */
function textOf({ result, error }) {
  if (error) return error.message;
  if (result.text !== undefined) return result.text || "Empty text.";
  const shapes = shapesOf(result);
  return [counted(shapes.length, "object"), ...shapes.map(({ label }) => label)].join(", ");
}
