/** Stage times of an answer as one bar, scaled to the slowest answer shown. */

import { html } from "./dom.js";
import { milliseconds, title } from "./names.js";

/** Order of the stages in a request; unknown stages come last. */
const ORDER = ["queue", "preprocess", "encode", "prefill", "decode", "postprocess"];

/**
 * Return the stages in order, with their milliseconds.
 * @param {Record<string, number>} timings
 * @returns {[string, number][]}
 */
export function stagesOf(timings) {
  const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return Object.entries(timings)
    .filter(([name]) => name !== "total")
    .sort(([a], [b]) => place(a) - place(b));
}

export class TimingsBar {
  /** @param {Record<string, number>} timings */
  constructor(timings) {
    this.total = timings.total;
    const stages = stagesOf(timings);
    this.bar = html("div", { class: "bar", "aria-hidden": true }, ...stages.map(([name, ms]) => part(name, ms)));
    const legend = stages.map(([name, ms]) =>
      html("li", { class: "stage", "data-stage": name }, title(name), " ", html("b", {}, milliseconds(ms))),
    );
    this.element = html(
      "div",
      { class: "timings" },
      this.bar,
      html("ul", { class: "legend", "aria-label": "Time by stage" }, ...legend),
    );
  }

  /** @param {number} slowest  milliseconds */
  scale(slowest) {
    this.bar.style.width = `${(100 * this.total) / slowest}%`;
  }
}

function part(name, ms) {
  const element = html("span", { class: "part", "data-stage": name });
  element.style.flexGrow = String(ms);
  return element;
}
