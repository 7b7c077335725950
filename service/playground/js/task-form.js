/** The parameters of the chosen task, made from its schema: what is required, what may be given, and one of several. */

import { fill, html } from "./dom.js";
import { BoxField } from "./field-box.js";
import { Field } from "./field.js";
import { title } from "./names.js";

export class TaskForm {
  /** @type {Field[]} */
  #fields = [];
  #alternatives = /** @type {string[]} */ ([]);
  #required = /** @type {string[]} */ ([]);
  #chosen = "";

  /**
   * @param {HTMLElement} element
   * @param {import("./region-editor.js").RegionEditor} regionEditor
   */
  constructor(element, regionEditor) {
    this.element = element;
    this.regionEditor = regionEditor;
    element.addEventListener("input", () => this.#showRegion());
  }

  /** Show the parameters of a task. @param {import("./api.js").Task} task */
  show({ parameters: schema }) {
    this.#fields = Object.entries(schema.properties).map(([name, each]) => new Field(name, each));
    this.#alternatives = (schema.oneOf ?? []).map(({ required: [name] }) => name);
    this.#required = schema.required;
    fill(this.element, this.#switcher(), ...this.#fields.map((field) => field.element));
    this.#choose(this.#alternatives[0] ?? "");
  }

  /** Put values in, by name; a parameter that is not among them is as at the beginning. @param {Record<string, any>} values */
  set(values) {
    for (const field of this.#fields) {
      field.set(values[field.name]);
      field.isTouched = field.name in values;
    }
    this.#choose(this.#alternatives.find((name) => name in values) ?? this.#chosen);
  }

  /** Suggest values, where nobody has given one yet. @param {Record<string, any>} examples */
  suggest(examples) {
    for (const field of this.#fields) {
      if (!field.isTouched && field.schema.default === undefined) field.set(examples[field.name]);
    }
    this.#showRegion();
  }

  /** Return what was given. @returns {import("./api.js").Fields} */
  values() {
    const given = this.#shown().map((field) => [field.name, field.value()]);
    return Object.fromEntries(given.filter(([, value]) => value !== undefined));
  }

  /** Say what is missing and go there; return whether nothing is. */
  check() {
    const values = this.values();
    const missing = this.#shown().find(({ name }) => (this.#required.includes(name) || name === this.#chosen) && !(name in values));
    if (!missing) return true;
    missing.tell(`Needed: ${missing.schema.description}`);
    missing.control.focus();
    return false;
  }

  /** Go to a parameter; return whether there is one of this name. @param {string} name */
  focus(name) {
    const field = this.#fields.find((each) => each.name === name);
    if (!field) return false;
    if (this.#alternatives.includes(name)) this.#choose(name);
    field.control.focus();
    return true;
  }

  #shown() {
    return this.#fields.filter((field) => !field.element.hidden);
  }

  #switcher() {
    if (!this.#alternatives.length) return null;
    const choices = this.#alternatives.map((name) =>
      html("label", { class: "segment" }, html("input", { type: "radio", name: "alternative", value: name, onchange: () => this.#choose(name) }), title(name)),
    );
    return html("div", { class: "segments", role: "radiogroup", "aria-label": "Give one of" }, ...choices);
  }

  #choose(name) {
    this.#chosen = name;
    for (const input of this.element.querySelectorAll("input[name=alternative]")) input.checked = input.value === name;
    for (const field of this.#fields) field.element.hidden = this.#alternatives.includes(field.name) && field.name !== name;
    this.#showRegion();
  }

  #showRegion() {
    const field = this.#shown().find(({ control }) => control instanceof BoxField);
    this.regionEditor.edit(field ? field.control : null);
  }
}
