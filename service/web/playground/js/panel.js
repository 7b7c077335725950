/** Panel of one model: annotated image, answer, timings and tokens. */

import { rawText, usage } from "./answer-facts.js";
import { copyButtons } from "./copy-buttons.js";
import { fill, html } from "./dom.js";
import { isBox } from "./field.js";
import { compact, milliseconds } from "./names.js";
import { ObjectTable } from "./object-table.js";
import { Overlay } from "./overlay.js";
import { Picture } from "./picture.js";
import { errorNote, notSupportedNote } from "./problem-note.js";
import { shapesOf } from "./shapes.js";
import { progress, stepAnswers } from "./step-answers.js";
import { TimingsBar } from "./timings-bar.js";

export class Panel {
  /** @type {import("./shapes.js").Shape[]} */
  shapes = [];
  /** @type {TimingsBar | null} */
  timings = null;
  /** @type {ObjectTable | null} */
  #table = null;

  /**
   * @param {import("./api.js").Model} model
   * @param {import("./run.js").Question} question
   * @param {import("./view.js").View} view
   * @param {import("./label-styles.js").LabelStyles} styles
   * @param {import("./problem-note.js").Remedies} remedies
   */
  constructor(model, question, view, styles, remedies) {
    this.model = model;
    this.question = question;
    this.view = view;
    this.remedies = remedies;
    this.styles = styles;
    this.overlay = new Overlay(model.id, view, styles);
    const region = regionOf(question);
    if (region) this.overlay.drawRegion(region, question.image);
    this.picture = new Picture(question.image, this.overlay.element, view, model.id);
    this.status = html("span", { class: "panel-status" });
    this.body = html("div", { class: "panel-body" });
    this.whole = html("div"); // answers of an analysis about the whole image
    this.facts = html("div", { class: "panel-facts" });
    const size = `${compact(model.parameters)} parameters · ${model.resolution} px · ${model.precision}`;
    const about = model.family === "openai" ? `${model.organization}, behind an engine` : size;
    const training = model.training ? html("p", { class: "quiet training" }, model.training) : null;
    const heading = html("h3", { id: `panel-${model.id}` }, model.id);
    this.element = html(
      "article",
      { class: "panel", "data-model": model.id, "aria-labelledby": `panel-${model.id}` },
      html("header", { class: "panel-head" }, heading, this.status, html("p", { class: "quiet" }, about), training),
      this.picture.element,
      this.body,
      this.facts,
    );
  }

  /** Show that the model does not support the task. */
  showNotSupported() {
    this.#state("not-offered");
    fill(this.body, notSupportedNote(this.model, this.question.task.id));
  }

  /** Show the state of the model's run. @param {import("./run.js").Outcome} outcome */
  show(outcome) {
    this.#state(outcome.state);
    if (outcome.answer) this.#showAnswer(outcome.answer);
    else if (outcome.steps) this.#showSteps(outcome.steps);
    else if (outcome.state === "waiting") this.#showWriting(outcome);
    const end = outcome.steps ? this.facts : this.body; // answers that are there stay
    if (outcome.state === "failed") fill(end, errorNote(outcome.error, this.remedies));
    if (outcome.state === "stopped") fill(end, html("p", { class: "quiet" }, "Stopped."));
  }

  /** Apply the view. @param {(shape: import("./shapes.js").Shape) => boolean} isShown */
  update(isShown) {
    this.overlay.update(isShown);
    this.#table?.update(isShown);
  }

  #state(state) {
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "waiting"));
    this.status.textContent = state === "waiting" ? "…" : "";
  }

  #showWriting({ text, found }) {
    const isText = this.question.task.result === "text";
    fill(this.body, html("p", { class: isText ? "answer-text writing" : "raw writing" }, text));
    fill(this.facts);
    this.#table = null;
    if (!found) return;
    this.shapes = shapesOf(found);
    this.overlay.draw(this.shapes, this.question.image);
  }

  /** Show the answers of an analysis so far; the objects of the first open into the others. */
  #showSteps([first, ...steps]) {
    const [answer] = first.answers;
    if (!this.body.contains(this.whole)) fill(this.body, this.whole);
    if (answer?.result && !this.#table) this.body.append(this.#objects(answer));
    fill(this.whole, stepAnswers(steps));
    this.#table?.open((index) => stepAnswers(steps, index));
    fill(this.facts, progress([first, ...steps], this.shapes.length));
  }

  /** Draw the objects of an answer and return their table; a text has none. */
  #objects(answer) {
    this.shapes = shapesOf(answer.result);
    this.overlay.draw(this.shapes, answer.image);
    this.#table = new ObjectTable(this.model.id, this.shapes, this.view, this.styles);
    return this.#table.element;
  }

  #showAnswer(answer) {
    if (answer.analysis) {
      this.#showSteps(answer.analysis.steps);
      this.status.textContent = milliseconds(answer.wall_ms);
      return fill(this.facts, copyButtons(answer, this.question));
    }
    this.status.textContent = milliseconds(answer.timings_ms.total);
    this.timings = new TimingsBar(answer.timings_ms);
    const objects = this.#objects(answer);
    fill(this.body, "text" in answer.result ? textOf(answer.result.text) : objects);
    return fill(this.facts, this.timings.element, usage(answer), rawText(answer), copyButtons(answer, this.question));
  }
}

/** Return the region of a question, if its task has one. @param {import("./run.js").Question} question */
function regionOf({ task, fields }) {
  const name = Object.keys(task.parameters.properties).find((each) => isBox(task.parameters.properties[each]));
  return /** @type {any} */ (name && fields[name]);
}

function textOf(text) {
  return text ? html("p", { class: "answer-text" }, text) : html("p", { class: "quiet" }, "Empty text.");
}
