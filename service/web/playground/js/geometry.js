/** Boxes and rings in pixels of the original image. Knows neither the page nor the API. */

/**
 * @typedef {[number, number]} Point
 * @typedef {[number, number, number, number]} Box  [x1, y1, x2, y2]
 * @typedef {Point[]} Ring  closed: the last point joins the first
 */

/**
 * Return the corners of a box, clockwise from the upper left.
 * @param {Box} box
 * @returns {Ring}
 */
export function boxRing([x1, y1, x2, y2]) {
  return [
    [x1, y1],
    [x2, y1],
    [x2, y2],
    [x1, y2],
  ];
}

/**
 * Return the bounding box of points.
 * @param {Point[]} points
 * @returns {Box}
 */
export function bounds(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/**
 * Return the area of a box, 0 if it is inverted.
 * @param {Box} box
 */
export function area([x1, y1, x2, y2]) {
  return Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
}

/**
 * Return intersection over union, 0 to 1.
 * @param {Box} one
 * @param {Box} other
 */
export function iou(one, other) {
  const shared = area([
    Math.max(one[0], other[0]),
    Math.max(one[1], other[1]),
    Math.min(one[2], other[2]),
    Math.min(one[3], other[3]),
  ]);
  const together = area(one) + area(other) - shared;
  return together > 0 ? shared / together : 0;
}

/**
 * Return rings as the `d` of an SVG path; by the even-odd rule, a ring within a ring is a hole.
 * @param {Ring[]} rings
 */
export function pathData(rings) {
  return rings
    .filter((ring) => ring.length)
    .map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`)
    .join("");
}

/**
 * Return the box between two dragged corners in any order, clamped to the image, rounded to a tenth of a pixel.
 * @param {Point} start
 * @param {Point} end
 * @param {{width: number, height: number}} image
 * @returns {Box}
 */
export function draggedBox(start, end, { width, height }) {
  const within = ([x, y]) => /** @type {Point} */ ([clamp(x, 0, width), clamp(y, 0, height)]);
  const box = bounds([within(start), within(end)]);
  return /** @type {Box} */ (box.map((value) => Math.round(value * 10) / 10));
}

/**
 * Return the value, limited to a range.
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
