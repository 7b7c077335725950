/** Parameters of the chosen task, built from its schema: required, optional, and one of several. */

import { fill } from "./dom.js";
import { BoxField } from "./field-box.js";
import { ChoiceField } from "./field-choice.js";
import { Field } from "./field.js";

export class TaskForm {
  /** @type {Field[]} */
  fields = [];
  #alternatives = /** @type {string[]} */ ([]);
  #required = /** @type {string[]} */ ([]);
  /** @type {ChoiceField | null} */
  #switcher = null;

  /**
   * @param {HTMLElement} element
   * @param {import("./region-editor.js").RegionEditor} regionEditor
   */
  constructor(element, regionEditor) {
    this.element = element;
    this.regionEditor = regionEditor;
    element.addEventListener("input", () => this.#update());
  }

  /** Show the parameters of a task. @param {import("./api.js").Task} task */
  show({ parameters: schema }) {
    this.fields = Object.entries(schema.properties).map(([name, each]) => new Field(name, each));
    this.#alternatives = (schema.oneOf ?? []).map(({ required: [name] }) => name);
    this.#required = schema.required;
    this.#switcher = switcherOf(this.#alternatives);
    fill(this.element, this.#switcher?.element, ...this.fields.map((field) => field.element));
    this.#update();
  }

  /** Set values by name; reset the other parameters. @param {Record<string, any>} values */
  set(values) {
    for (const field of this.fields) {
      field.set(values[field.name]);
      field.isTouched = field.name in values;
    }
    this.#choose(this.#alternatives.find((name) => name in values) ?? this.#chosen);
  }

  /** Suggest values for parameters that the user has not edited. @param {Record<string, any>} examples */
  suggest(examples) {
    for (const field of this.fields) {
      if (!field.isTouched && field.schema.default === undefined) field.set(examples[field.name]);
    }
    this.#update();
  }

  /** Return the values that are set. @returns {import("./api.js").Fields} */
  values() {
    const given = this.#shown().map((field) => [field.name, field.value()]);
    return Object.fromEntries(given.filter(([, value]) => value !== undefined));
  }

  /** Show and focus a missing parameter; return true if none is missing. */
  check() {
    const values = this.values();
    const missing = this.#shown().find(
      ({ name }) => (this.#required.includes(name) || name === this.#chosen) && !(name in values),
    );
    if (!missing) return true;
    missing.showProblem(`Required: ${missing.schema.description}`);
    missing.focus();
    return false;
  }

  /** Show a parameter instead of its alternatives. @param {string} name */
  reveal(name) {
    if (this.#alternatives.includes(name)) this.#choose(name);
  }

  /** Return the alternatives of a parameter. @param {string} name */
  instead(name) {
    return this.#alternatives.includes(name) ? this.#alternatives.filter((other) => other !== name) : [];
  }

  #shown() {
    return this.fields.filter((field) => !field.element.hidden);
  }

  /** @returns {string | undefined} */
  get #chosen() {
    return this.#switcher?.value();
  }

  #choose(name) {
    this.#switcher?.set([name]);
    this.#update();
  }

  /** Show only the chosen alternative, and the box of a region on the image. */
  #update() {
    for (const { name, element } of this.fields) {
      element.hidden = this.#alternatives.includes(name) && name !== this.#chosen;
    }
    const field = this.#shown().find(({ control }) => control instanceof BoxField);
    this.regionEditor.edit(field ? field.control : null);
  }
}

/** Return the switch between alternative parameters; null without alternatives. @param {string[]} names */
function switcherOf(names) {
  if (!names.length) return null;
  const switcher = new ChoiceField("alternative", { enum: names, default: names[0] }, "alternative");
  switcher.element.setAttribute("role", "radiogroup");
  switcher.element.setAttribute("aria-label", "Choose a parameter");
  return switcher;
}
