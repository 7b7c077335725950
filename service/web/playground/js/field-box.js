/** Input of a box: drawn on the image, or typed as four numbers. */

import { html } from "./dom.js";

const CORNERS = ["x1", "y1", "x2", "y2"];

export class BoxField {
  isGroup = true;

  constructor(schema) {
    this.inputs = CORNERS.map((name) =>
      html("input", {
        type: "number",
        min: schema.items.minimum,
        step: "any",
        "aria-label": `${name}, pixels`,
        placeholder: name,
      }),
    );
    this.element = html("div", { class: "box-field" }, ...this.inputs);
  }

  value() {
    const texts = this.inputs.map((input) => input.value);
    return texts.some((text) => text === "") ? undefined : texts.map(Number);
  }

  set(values) {
    this.inputs.forEach((input, index) => (input.value = values[index] ?? ""));
  }

  /** Set the box from a drawing. @param {import("./geometry.js").Box} box */
  draw(box) {
    this.set(box);
    this.element.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
