/** Generation options: the fields common to all tasks, built from the OpenAPI document. */

import { byId, fill } from "./dom.js";
import { Field } from "./field.js";

/** Fields that the page sets itself. */
const OWN_FIELDS = new Set(["image", "images", "task", "model", "mask_format", "stream"]);

export class OptionsForm {
  /** @type {Field[]} */
  fields = [];

  /**
   * @param {Record<string, any>} schemas  of all fields
   * @param {string[]} parameters  names of the tasks' own fields
   */
  constructor(schemas, parameters) {
    const names = Object.keys(schemas).filter((name) => !OWN_FIELDS.has(name) && !parameters.includes(name));
    this.fields = names.map((name) => new Field(name, schemas[name]));
    fill(byId("option-fields"), ...this.fields.map((field) => field.element));
    byId("options").addEventListener("input", () => this.#count());
  }

  /** Return the values other than defaults. @returns {import("./api.js").Fields} */
  values() {
    const given = this.fields.map((field) => [field.name, field.value()]);
    return Object.fromEntries(given.filter(([, value]) => value !== undefined));
  }

  /** Set values by name; reset the other fields. @param {Record<string, any>} values */
  set(values) {
    for (const field of this.fields) field.set(values[field.name]);
    this.#count();
  }

  #count() {
    const count = Object.keys(this.values()).length;
    byId("options-count").textContent = count ? `${count} set` : "";
  }
}
