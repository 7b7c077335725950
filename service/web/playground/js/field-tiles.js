/** Input of tiles: off, automatic, or a grid of rows and columns. */

import { html } from "./dom.js";
import { ChoiceField } from "./field-choice.js";
import { title } from "./names.js";

export class TilesField {
  isGroup = true;
  hint = "Also asks about parts of the image, in which small things are larger.";

  /** @param {string} id */
  constructor(id) {
    this.mode = new ChoiceField("tiles", { enum: ["off", "auto", "grid"], default: "off" }, id);
    this.sides = ["rows", "columns"].map((name) => html("input", { type: "number", min: 1, "aria-label": title(name) }));
    const [rows, columns] = this.sides;
    this.grid = html("div", { class: "control" }, rows, "rows ×", columns, "columns");
    this.element = html("div", { oninput: () => this.#update() }, this.mode.element, this.grid);
    this.set([]);
  }

  /** Return `off`, `auto` or `2x3`. */
  value() {
    const mode = this.mode.value();
    return mode === "grid" ? this.sides.map((side) => side.value).join("x") : mode;
  }

  set([value = "off"]) {
    const isGrid = !["off", "auto"].includes(String(value));
    this.mode.set([isGrid ? "grid" : value]);
    const numbers = isGrid ? String(value).split("x") : [2, 2];
    this.sides.forEach((side, index) => (side.value = numbers[index] ?? ""));
    this.#update();
  }

  #update() {
    this.grid.hidden = this.mode.value() !== "grid";
  }
}
