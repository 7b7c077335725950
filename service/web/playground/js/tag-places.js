/** Placement of shape labels without overlapping each other and, if possible, their shapes. */

import { clamp } from "./geometry.js";

/**
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {{box: Box, width: number, height: number}} Tag  box of a shape and size of its label, in CSS pixels
 */

/**
 * Return the upper left corner of each tag: the first free place above, below or within its box.
 * @param {Tag[]} tags
 * @param {{width: number, height: number}} view
 * @returns {[number, number][]}
 */
export function placeTags(tags, view) {
  const taken = /** @type {Box[]} */ ([]);
  return tags.map((tag) => {
    const places = candidates(tag, view);
    const free = places.find((place) => !taken.some((other) => overlaps(place, other))) ?? places[0];
    taken.push(free);
    return [free[0], free[1]];
  });
}

/** @param {Tag} tag @returns {Box[]} */
function candidates({ box: [x1, y1, x2, y2], width, height }, view) {
  const corners = [
    [x1, y1 - height],
    [x1, y2],
    [x1, y1],
    [x2 - width, y1 - height],
    [x2 - width, y2],
    [x1, y2 - height],
    [x1, y1 - 2 * height],
    [x1, y2 + height],
  ];
  const inside = corners.filter(([, y]) => y >= 0 && y + height <= view.height);
  return (inside.length ? inside : [[x1, y1]]).map(([x, y]) => {
    const left = clamp(x, 0, Math.max(0, view.width - width));
    const top = clamp(y, 0, Math.max(0, view.height - height));
    return [left, top, left + width, top + height];
  });
}

/** @param {Box} one @param {Box} other */
function overlaps(one, other) {
  return one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
}
