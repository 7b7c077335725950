/** Input of one parameter or option, built from its JSON Schema. */

import { BoxField } from "./field-box.js";
import { ChipsField } from "./field-chips.js";
import { ChoiceField } from "./field-choice.js";
import { NumberField, SwitchField, TextField } from "./field-simple.js";
import { TilesField } from "./field-tiles.js";
import { html } from "./dom.js";
import { title } from "./names.js";

/**
 * @typedef {object} Control  the input element
 * @property {HTMLElement} element
 * @property {() => any} value  undefined: empty
 * @property {(values: (string | number | boolean)[]) => void} set  empty: reset
 * @property {string} [hint]  instead of the schema's description
 * @property {boolean} [isGroup]  several elements, which a <label> cannot name
 */

let numFields = 0;

export class Field {
  /**
   * @param {string} name
   * @param {any} schema
   */
  constructor(name, schema) {
    this.name = name;
    this.schema = withoutNull(schema);
    this.isTouched = false;
    const id = `field-${++numFields}`;
    this.control = controlOf(name, this.schema, id);
    this.problem = html("p", { class: "problem", id: `${id}-problem`, hidden: true });
    this.element = this.#build(id);
    this.element.addEventListener("input", () => this.#touched());
  }

  /** Return the value; undefined for the default, which is not sent. */
  value() {
    const value = this.control.value();
    return value === this.schema.default ? undefined : value;
  }

  /** @param {any} value  one or several; undefined: reset */
  set(value) {
    this.control.set(value === undefined || value === null ? [] : [value].flat());
    this.showProblem("");
  }

  /** Show a problem of the value; an empty text hides it. @param {string} text */
  showProblem(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
    if (text) this.#open();
    this.element.toggleAttribute("data-wrong", Boolean(text));
  }

  /** Focus the input, with its problem in view. */
  focus() {
    this.#open();
    this.element.querySelector("input:checked, input:not([type=radio]), select, textarea").focus();
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Open the options if the field is one. */
  #open() {
    this.element.closest("details")?.setAttribute("open", "");
  }

  #touched() {
    this.isTouched = true;
    this.showProblem("");
  }

  #build(id) {
    const { element, isGroup } = this.control;
    const naming = isGroup
      ? { role: "group", "aria-labelledby": `${id}-label`, "aria-describedby": `${id}-hint ${id}-problem` }
      : {};
    return html(
      "div",
      { class: "field", "data-field": this.name, ...naming },
      html(
        isGroup ? "span" : "label",
        { class: "field-name", id: `${id}-label`, title: this.name, for: isGroup ? null : id },
        title(this.name),
      ),
      element,
      html("p", { class: "hint", id: `${id}-hint` }, this.control.hint ?? this.schema.description),
      this.problem,
    );
  }
}

/** @param {string} name @param {any} schema @param {string} id @returns {Control} */
function controlOf(name, schema, id) {
  if (name === "tiles") return new TilesField(id);
  if (schema.enum) return new ChoiceField(name, schema, id);
  if (schema.type === "array") return isBox(schema) ? new BoxField(schema) : new ChipsField(schema, id);
  if (schema.type === "boolean") return new SwitchField(schema, id);
  return schema.type === "string" ? new TextField(schema, id) : new NumberField(schema, id);
}

/** Return true for the schema of `[x1, y1, x2, y2]`. @param {any} schema */
export function isBox({ type, items, minItems, maxItems }) {
  return type === "array" && items.type === "number" && minItems === 4 && maxItems === 4;
}

/** Return the schema without its null alternative, for a nullable field is optional, and with its default. */
function withoutNull(schema) {
  const given = schema.anyOf?.find(({ type }) => type !== "null") ?? schema;
  const value = schema.default ?? schema["x-default"] ?? undefined;
  return { ...given, description: schema.description, default: value };
}
