/** Inputs of a text, a number and a boolean. */

import { html } from "./dom.js";

export class TextField {
  constructor(schema, id) {
    this.element = html("textarea", {
      id,
      rows: 2,
      maxlength: schema.maxLength,
      "aria-describedby": `${id}-hint ${id}-problem`,
    });
  }

  value() {
    return this.element.value.trim() || undefined;
  }

  set([text = ""]) {
    this.element.value = text;
  }
}

export class NumberField {
  constructor(schema, id) {
    this.schema = schema;
    this.element = html("input", {
      id,
      type: "number",
      min: schema.minimum ?? schema.exclusiveMinimum,
      max: schema.maximum,
      step: schema.type === "integer" ? 1 : "any",
      placeholder: schema.default ?? "not set",
      "aria-describedby": `${id}-hint ${id}-problem`,
    });
  }

  value() {
    if (this.element.validity.badInput) return "NaN"; // the service refuses it; in JSON the number would be null
    return this.element.value === "" ? this.schema.default : Number(this.element.value);
  }

  set([value = ""]) {
    this.element.value = value;
  }
}

export class SwitchField {
  constructor(schema, id) {
    this.schema = schema;
    this.element = html("input", { id, type: "checkbox", class: "switch", "aria-describedby": `${id}-hint` });
    this.set([]);
  }

  value() {
    return this.element.checked;
  }

  set([value = this.schema.default]) {
    this.element.checked = String(value) === "true";
  }
}
