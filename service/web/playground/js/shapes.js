/** Drawable shapes of an answer: one form for detections, instances and text regions. */

import { boxRing, bounds } from "./geometry.js";

/**
 * @typedef {object} Shape
 * @property {number} index  place in the answer
 * @property {string} label  empty if the task has no labels
 * @property {number | null} score
 * @property {import("./geometry.js").Box} box
 * @property {import("./geometry.js").Ring[]} rings
 * @property {boolean} isFilled  an outline of the object, not its bounding box
 */

/**
 * Return the shapes of a result; none for text.
 * @param {Record<string, any>} result
 * @returns {Shape[]}
 */
export function shapesOf({ detections, instances, text_regions: regions }) {
  if (detections)
    return detections.map(({ box, label, score }, index) => shape(index, label, score, box, [boxRing(box)], false));
  if (instances)
    return instances.map((one, index) => shape(index, one.label, one.score, one.box, one.polygons ?? [], true));
  return (regions ?? []).map(({ quad, text, score }, index) => shape(index, text, score, bounds(quad), [quad], false));
}

/**
 * Return the key for comparing labels, without case and repeated white space.
 * @param {string} label
 */
export function labelKey(label) {
  return label.trim().replace(/\s+/g, " ").toLowerCase();
}

/** @returns {Shape} */
function shape(index, label, score, box, rings, isFilled) {
  return { index, label, score, box, rings, isFilled };
}
