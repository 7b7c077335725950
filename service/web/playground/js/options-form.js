/** How an answer is written: the fields that every task takes, from the service's own contract. */

import { byId, fill } from "./dom.js";
import { Field } from "./field.js";

/** What the page decides itself. */
const OWN_FIELDS = new Set(["image", "task", "model", "mask_format", "stream"]);

export class OptionsForm {
  /** @type {Field[]} */
  #fields = [];

  /**
   * @param {Record<string, any>} schemas  of all fields of a task
   * @param {string[]} parameters  names of those that are the task's own
   */
  constructor(schemas, parameters) {
    const names = Object.keys(schemas).filter((name) => !OWN_FIELDS.has(name) && !parameters.includes(name));
    this.#fields = names.map((name) => new Field(name, schemas[name]));
    fill(byId("option-fields"), ...this.#fields.map((field) => field.element));
    byId("options").addEventListener("input", () => this.#count());
  }

  /** Return what differs from the defaults. @returns {import("./api.js").Fields} */
  values() {
    const given = this.#fields.map((field) => [field.name, field.value()]);
    return Object.fromEntries(given.filter(([, value]) => value !== undefined));
  }

  /** Put values in, by name; others are as at the beginning. @param {Record<string, any>} values */
  set(values) {
    for (const field of this.#fields) field.set(values[field.name]);
    this.#count();
  }

  /** Go to an option; return whether there is one of this name. @param {string} name */
  focus(name) {
    const field = this.#fields.find((each) => each.name === name);
    if (!field) return false;
    byId("options").open = true;
    field.control.focus();
    return true;
  }

  #count() {
    const count = Object.keys(this.values()).length;
    byId("options-count").textContent = count ? `${count} set` : "";
  }
}
