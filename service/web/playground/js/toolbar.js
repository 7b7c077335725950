/** View controls above the panels: shapes, labels, minimum score or proved precision, zoom. */

import { fill, html } from "./dom.js";
import { percent } from "./names.js";
import { MAX_ZOOM, zoomBy } from "./picture.js";
import { proofWords } from "./proofs.js";

const STEP = 1.5;

export class Toolbar {
  /**
   * @param {HTMLElement} element
   * @param {import("./view.js").View} view
   */
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.levels = [0];
    this.score = html("output", { for: "min-score" });
    this.percent = html("span", { class: "zoom-percent" }, "100 %");
    this.precision = html("output", { for: "min-precision" });
    this.proved = html("span", { class: "hint", id: "proved" });
    this.sliders = [this.#scoreSlider(), this.#precisionSlider()];
    this.shapeControls = [...this.sliders, this.#toggle("Shapes", "showsShapes"), this.#toggle("Names", "showsNames")];
    this.zoomControls = this.#zoom();
    fill(element, ...this.shapeControls, this.zoomControls);
    view.addEventListener("change", () => this.#update());
    this.#update();
  }

  /** Show the controls that apply to the result. @param {boolean} hasShapes */
  show(hasShapes) {
    this.element.hidden = false;
    this.shapeControls.forEach((control) => (control.hidden = !hasShapes));
    const proved = [...this.view.proofs.values()].flat().map((proof) => proof.min_precision);
    this.levels = [0, ...new Set(proved.sort((one, other) => one - other))];
    const [score, precision] = this.sliders;
    score.hidden ||= proved.length > 0;
    precision.hidden ||= proved.length === 0;
    const input = precision.querySelector("input");
    input.max = String(this.levels.length - 1);
    input.value = String(this.levels.indexOf(this.view.minPrecision));
    this.#update();
  }

  #update() {
    this.score.textContent = this.view.minScore.toFixed(2);
    const { minPrecision, proofs } = this.view;
    this.precision.textContent = minPrecision ? percent(minPrecision) : "any";
    const models = minPrecision ? [...proofs.keys()] : [];
    this.proved.textContent = models.map((model) => proofWords(model, this.view.proofOf(model))).join("; ");
    this.percent.textContent = `${Math.round(this.view.zoom * 100)} %`;
    const [out, whole, closer] = this.zoomControls.querySelectorAll("button");
    out.disabled = whole.disabled = this.view.zoom === 1;
    closer.disabled = this.view.zoom === MAX_ZOOM;
  }

  #precisionSlider() {
    const change = (event) => this.view.change({ minPrecision: this.levels[Number(event.target.value)] });
    const input = html("input", { id: "min-precision", type: "range", min: 0, step: 1, value: 0, oninput: change });
    const label = html("label", { for: "min-precision" }, "Proved to be right");
    return html("div", { class: "control" }, label, input, this.precision, this.proved);
  }

  #scoreSlider() {
    const change = (event) => this.view.change({ minScore: Number(event.target.value) });
    const input = html("input", {
      id: "min-score",
      type: "range",
      min: 0,
      max: 1,
      step: 0.01,
      value: this.view.minScore,
      oninput: change,
    });
    return html("div", { class: "control" }, html("label", { for: "min-score" }, "Score at least"), input, this.score);
  }

  #toggle(name, property) {
    const change = (event) => this.view.change({ [property]: event.target.checked });
    return html(
      "label",
      { class: "control" },
      html("input", { type: "checkbox", class: "switch", checked: true, onchange: change }),
      name,
    );
  }

  #zoom() {
    const button = (name, text, factor) =>
      html(
        "button",
        { type: "button", class: "small", "aria-label": name, onclick: () => zoomBy(this.view, factor) },
        text,
      );
    return html(
      "div",
      { class: "control zoom", role: "group", "aria-label": "Zoom" },
      button("Zoom out", "−", 1 / STEP),
      button("Show the whole image", this.percent, 0),
      button("Zoom in", "+", STEP),
    );
  }
}
