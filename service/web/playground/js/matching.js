/** Matching of objects between two models. */

import { iou } from "./geometry.js";
import { labelKey } from "./shapes.js";

/** COCO's lowest threshold of intersection over union for the same object. */
export const MIN_IOU = 0.5;

/**
 * @typedef {import("./shapes.js").Shape} Shape
 * @typedef {object} Matches
 * @property {[Shape, Shape][]} both
 * @property {Shape[]} onlyLeft
 * @property {Shape[]} onlyRight
 */

/**
 * Pair shapes of the same label, the largest overlaps first; each shape is in one pair at most.
 * @param {Shape[]} left
 * @param {Shape[]} right
 * @param {number} [minIou]
 * @returns {Matches}
 */
export function matchShapes(left, right, minIou = MIN_IOU) {
  const taken = new Set();
  const both = /** @type {[Shape, Shape][]} */ ([]);
  for (const [one, other] of candidates(left, right, minIou)) {
    if (taken.has(one) || taken.has(other)) continue;
    taken.add(one).add(other);
    both.push([one, other]);
  }
  const isAlone = (shape) => !taken.has(shape);
  return { both, onlyLeft: left.filter(isAlone), onlyRight: right.filter(isAlone) };
}

/** @returns {[Shape, Shape][]} */
function candidates(left, right, minIou) {
  const pairs = left.flatMap((one) => right.map((other) => ({ one, other, overlap: iou(one.box, other.box) })));
  return pairs
    .filter(({ one, other, overlap }) => overlap >= minIou && labelKey(one.label) === labelKey(other.label))
    .sort((a, b) => b.overlap - a.overlap)
    .map(({ one, other }) => [one, other]);
}
