/** Table of an answer's objects; hovering or focusing a row highlights its shape, pressing it opens its answers. */

import { fill, html } from "./dom.js";
import { labelKey } from "./shapes.js";

export class ObjectTable {
  /**
   * @param {string} model
   * @param {import("./shapes.js").Shape[]} shapes
   * @param {import("./view.js").View} view
   * @param {import("./label-styles.js").LabelStyles} styles
   */
  constructor(model, shapes, view, styles) {
    this.model = model;
    this.view = view;
    this.styles = styles;
    this.rows = shapes.map((shape) => this.#row(shape));
    const heads = ["Label", "Score", "Box in pixels"].map((name) => html("th", { scope: "col" }, name));
    this.none = html("p", { class: "quiet" });
    this.table = html(
      "table",
      { class: "objects" },
      html("thead", {}, html("tr", {}, ...heads)),
      html("tbody", {}, ...this.rows.map(({ row }) => row)),
    );
    this.element = html("div", { class: "object-list" }, this.table, this.none);
  }

  /** Show the rows that pass the view's filters. @param {(shape: import("./shapes.js").Shape) => boolean} isShown */
  update(isShown) {
    for (const { shape, row, name, more } of this.rows) {
      row.hidden = !isShown(shape);
      if (more) more.hidden = row.hidden || name.ariaExpanded !== "true";
      row.toggleAttribute("data-lit", this.view.lights(this.model, shape.index, labelKey(shape.label)));
    }
    const isEmpty = this.rows.every(({ row }) => row.hidden);
    this.table.hidden = isEmpty;
    this.none.hidden = !isEmpty;
    this.none.textContent = this.rows.length ? "No object matches the filters." : "No objects found.";
  }

  /** Let rows open into what is known about their objects. @param {(index: number) => Node | null} answersOf */
  open(answersOf) {
    for (const each of this.rows) {
      const answers = answersOf(each.shape.index);
      if (answers && !each.more) {
        each.name.ariaExpanded = "false";
        each.more = html("tr", { class: "more", hidden: true }, html("td", { colspan: 3 }));
        each.row.after(each.more);
      }
      if (answers) fill(each.more.firstChild, answers);
    }
  }

  #row(shape) {
    const lit = { model: this.model, index: shape.index, key: labelKey(shape.label) };
    const on = () => this.view.change({ lit });
    const off = () => this.view.change({ lit: null });
    const press = () => {
      if (name.ariaExpanded) name.ariaExpanded = String(name.ariaExpanded !== "true");
      on(); // the view's change shows the answers
    };
    const swatch = html("span", { class: "swatch", "aria-hidden": true });
    swatch.style.background = this.styles.of(shape.label).color;
    const name = html(
      "button",
      { type: "button", class: "object", onfocus: on, onblur: off, onclick: press },
      swatch,
      shape.label || `Region ${shape.index + 1}`,
    );
    const row = html(
      "tr",
      { "data-index": shape.index, onpointerenter: on, onpointerleave: off },
      html("td", {}, name),
      html("td", { class: "number" }, shape.score?.toFixed(2) ?? "–"),
      html("td", { class: "number" }, shape.box.map((value) => Math.round(value)).join(", ")),
    );
    return { shape, row, name, more: /** @type {any} */ (null) };
  }
}
