/** Differences between two answers: objects or words that both have, and that only one has. */

import { fill, html } from "./dom.js";
import { counted } from "./names.js";
import { matchShapes, MIN_IOU } from "./matching.js";
import { countWords, diffWords } from "./word-diff.js";

/**
 * @typedef {{model: string, answer: import("./api.js").Answer, shapes: import("./shapes.js").Shape[]}} Side
 */

export class Differences {
  /** @type {Map<import("./shapes.js").Shape, import("./view.js").Filter>} */
  #groups = new Map();

  /**
   * @param {HTMLElement} element
   * @param {import("./view.js").View} view
   */
  constructor(element, view) {
    this.element = element;
    this.view = view;
  }

  /** Return true if a shape passes the filter. @param {import("./shapes.js").Shape} shape */
  passes(shape) {
    return this.view.filter === "all" || (this.#groups.get(shape) ?? this.view.filter) === this.view.filter;
  }

  /** Show the differences of the first two answers; hide them if there are fewer. @param {Side[]} sides */
  show(sides) {
    this.#groups.clear();
    this.element.hidden = sides.length < 2;
    if (sides.length < 2) return;
    const [left, right] = sides;
    const pair = html("span", { class: "hint" }, `${left.model} and ${right.model}:`);
    if ("text" in left.answer.result) this.#showWords(left, right);
    else this.#showObjects(left, right);
    if (sides.length > 2) this.element.prepend(pair);
  }

  #showObjects(left, right) {
    const kept = ({ model, shapes }) => this.view.kept(model, shapes);
    const { both, onlyLeft, onlyRight } = matchShapes(kept(left), kept(right));
    for (const shape of both.flat()) this.#groups.set(shape, "both");
    for (const shape of onlyLeft) this.#groups.set(shape, "left");
    for (const shape of onlyRight) this.#groups.set(shape, "right");
    const focused = this.element.querySelector(":focus")?.getAttribute("data-filter");
    fill(
      this.element,
      this.#filterButton("both", "Both", both.length),
      this.#filterButton("left", `Only ${left.model}`, onlyLeft.length),
      this.#filterButton("right", `Only ${right.model}`, onlyRight.length),
      html("span", { class: "hint" }, `Both: same label, intersection over union at least ${MIN_IOU}`),
    );
    /** @type {HTMLElement | null} */ (this.element.querySelector(`[data-filter=${focused}]`))?.focus();
  }

  #filterButton(filter, name, count) {
    const isOn = this.view.filter === filter;
    const toggle = () => this.view.change({ filter: isOn ? "all" : filter });
    const attributes = {
      type: "button",
      class: "filter",
      "data-filter": filter,
      "aria-pressed": String(isOn),
      onclick: toggle,
    };
    return html("button", attributes, html("span", {}, name), " ", html("b", {}, count));
  }

  #showWords(left, right) {
    const passages = diffWords(left.answer.result.text, right.answer.result.text);
    const count = (side) => countWords(passages, side);
    const isSame = passages.every(({ side }) => side === "both");
    const legend = isSame
      ? [html("span", {}, "Both texts are identical.")]
      : [
          html("span", { class: "count" }, "Both ", html("b", {}, counted(count("both"), "word"))),
          html("del", { class: "count" }, `Only ${left.model} `, html("b", {}, counted(count("left"), "word"))),
          html("ins", { class: "count" }, `Only ${right.model} `, html("b", {}, counted(count("right"), "word"))),
        ];
    const text = isSame
      ? null
      : html("p", { class: "word-diff" }, ...passages.flatMap((passage) => [passageElement(passage), " "]));
    fill(this.element, ...legend, text);
  }
}

/** @param {import("./word-diff.js").Passage} passage */
function passageElement({ side, words }) {
  return html({ both: "span", left: "del", right: "ins" }[side], { "data-side": side }, words.join(" "));
}
