/** Drawing of a box on the chosen image, for tasks with a region. */

import { svg } from "./dom.js";
import { boxRing, draggedBox, pathData } from "./geometry.js";

export class RegionEditor {
  /** @type {import("./field-box.js").BoxField | null} */
  #field = null;
  #image = { width: 1, height: 1 };
  #start = /** @type {import("./geometry.js").Point | null} */ (null);

  constructor() {
    this.path = svg("path", { class: "region", "vector-effect": "non-scaling-stroke" });
    this.element = svg(
      "svg",
      {
        class: "region-editor",
        "aria-hidden": true,
        preserveAspectRatio: "none",
        onpointerdown: (event) => this.#begin(event),
        onpointermove: (event) => this.#drag(event),
        onpointerup: () => (this.#start = null),
        onpointercancel: () => (this.#start = null),
      },
      this.path,
    );
    this.edit(null);
  }

  /** Cover another image. @param {{width: number, height: number}} image */
  over(image) {
    this.#image = image;
    this.element.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  }

  /** Show and edit the box of a field; null: the task has none. @param {any} field */
  edit(field) {
    this.#field = field;
    this.element.toggleAttribute("data-active", field !== null);
    const box = field?.value();
    this.path.setAttribute("d", box ? pathData([boxRing(box)]) : "");
  }

  #begin(event) {
    if (!this.#field || event.button !== 0) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    this.#start = this.#pixel(event);
  }

  #drag(event) {
    if (!this.#start || !this.#field) return;
    this.#field.draw(draggedBox(this.#start, this.#pixel(event), this.#image));
  }

  /** @returns {import("./geometry.js").Point} */
  #pixel(event) {
    const { left, top, width, height } = this.element.getBoundingClientRect();
    return [
      ((event.clientX - left) / width) * this.#image.width,
      ((event.clientY - top) / height) * this.#image.height,
    ];
  }
}
