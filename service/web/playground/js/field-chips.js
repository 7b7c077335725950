/** Input of a list of texts as chips: Enter or a comma adds one, Backspace in the empty input removes the last. */

import { fill, html } from "./dom.js";

export class ChipsField {
  #texts = /** @type {string[]} */ ([]);

  constructor(schema, id) {
    this.maxItems = schema.maxItems;
    this.input = html("input", {
      id,
      type: "text",
      maxlength: schema.items.maxLength,
      enterkeyhint: "enter",
      autocomplete: "off",
      "aria-describedby": `${id}-hint ${id}-problem`,
      onkeydown: (event) => this.#typed(event),
      onblur: () => this.#take(),
      onpaste: (event) => this.#pasted(event),
    });
    this.list = html("ul", { class: "chip-list" });
    this.element = html("div", { class: "chips", onclick: () => this.focus() }, this.list, this.input);
    this.#show();
  }

  value() {
    const rest = this.input.value.trim();
    const texts = rest ? [...this.#texts, rest] : this.#texts;
    return texts.length ? [...texts] : undefined;
  }

  set(texts) {
    this.#texts = texts.map(String);
    this.input.value = "";
    this.#show();
  }

  focus() {
    this.input.focus();
  }

  #typed(event) {
    const isEnd = (event.key === "Enter" && !event.ctrlKey && !event.metaKey) || event.key === ",";
    if (isEnd && !event.isComposing) {
      event.preventDefault();
      this.#take();
    } else if (event.key === "Backspace" && this.input.value === "") {
      this.#remove(this.#texts.length - 1);
    }
  }

  #pasted(event) {
    const texts = (event.clipboardData?.getData("text") ?? "").split(/[,\n]/);
    if (texts.length < 2) return;
    event.preventDefault();
    this.#add(texts);
  }

  #take() {
    // quotes hold a text with a comma
    const texts = this.input.value.match(/"[^"]*"|[^,\n]+/g) ?? [];
    if (this.input.value.trim()) this.#add(texts.map((text) => text.trim().replace(/^"(.*)"$/, "$1")));
  }

  /** Add new texts; the service compares labels case-insensitively. */
  #add(texts) {
    for (const text of texts.map((each) => each.trim()).filter(Boolean)) {
      const isThere = this.#texts.some((other) => other.toLowerCase() === text.toLowerCase());
      if (!isThere && this.#texts.length < this.maxItems) this.#texts.push(text);
    }
    this.input.value = "";
    this.#changed();
  }

  #remove(index) {
    this.#texts.splice(index, 1);
    this.#changed();
    this.focus();
  }

  #changed() {
    this.#show();
    this.element.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #show() {
    const chips = this.#texts.map((text, index) =>
      html(
        "li",
        { class: "chip" },
        html("span", {}, text),
        html("button", { type: "button", "aria-label": `Remove ${text}`, onclick: () => this.#remove(index) }, "×"),
      ),
    );
    fill(this.list, ...chips);
    this.list.hidden = !chips.length;
    this.input.placeholder = chips.length ? "" : "Type, then Enter";
  }
}
