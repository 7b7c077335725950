/** Input of one of several words: segments for a few, a list for many. */

import { html } from "./dom.js";
import { language, title } from "./names.js";

const MAX_SIDE_BY_SIDE = 4;

export class ChoiceField {
  constructor(name, schema, id) {
    this.default = schema.default;
    this.isGroup = schema.enum.length <= MAX_SIDE_BY_SIDE;
    this.element = this.isGroup ? radios(schema, id) : list(name, schema, id);
  }

  value() {
    return this.isGroup ? this.element.querySelector("input:checked")?.value : this.element.value;
  }

  set([value = this.default]) {
    if (!this.isGroup) this.element.value = value;
    for (const input of this.element.querySelectorAll("input")) input.checked = input.value === value;
  }
}

function radios(schema, id) {
  const choices = schema.enum.map((word) =>
    html(
      "label",
      { class: "segment" },
      html("input", { type: "radio", name: id, value: word, checked: word === schema.default }),
      title(word),
    ),
  );
  return html("div", { class: "segments" }, ...choices);
}

function list(name, schema, id) {
  const shown = name === "language" ? language : title;
  const choices = schema.enum.map((word) =>
    html("option", { value: word, selected: word === schema.default }, shown(word)),
  );
  return html("select", { id, "aria-describedby": `${id}-hint` }, ...choices);
}
