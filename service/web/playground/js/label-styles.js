/** One style per label, the same in all panels until the page is closed. */

import { labelKey } from "./shapes.js";

/**
 * Okabe and Ito's colours, distinguishable with any colour vision (jfly.uni-koeln.de/color), each with a legible ink.
 * After all colours are used, the stroke pattern changes.
 */
const COLORS = [
  ["#0072b2", "#fff"],
  ["#e69f00", "#000"],
  ["#009e73", "#000"],
  ["#cc79a7", "#000"],
  ["#56b4e9", "#000"],
  ["#d55e00", "#000"],
  ["#f0e442", "#000"],
];
const DASHES = ["none", "9 5", "2 4"];

/** @typedef {{color: string, ink: string, dash: string}} LabelStyle */

export class LabelStyles {
  #numbers = new Map();

  /**
   * Return the style of a label; a new label gets the next one.
   * @param {string} label
   * @returns {LabelStyle}
   */
  of(label) {
    const key = labelKey(label);
    if (!this.#numbers.has(key)) this.#numbers.set(key, this.#numbers.size);
    const number = this.#numbers.get(key);
    const [color, ink] = COLORS[number % COLORS.length];
    return { color, ink, dash: DASHES[Math.floor(number / COLORS.length) % DASHES.length] };
  }
}
