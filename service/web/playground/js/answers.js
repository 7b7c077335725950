/** The answers of one run: a panel for each model, their differences, and the shared view controls. */

import { Differences } from "./differences.js";
import { byId, fill } from "./dom.js";
import { Panel } from "./panel.js";
import { moveTogether } from "./picture.js";
import { proofsOf } from "./proofs.js";
import { Toolbar } from "./toolbar.js";
import { View } from "./view.js";

export class Answers {
  /** @type {Panel[]} */
  #panels = [];

  /**
   * @param {import("./api.js").Model[]} models
   * @param {import("./label-styles.js").LabelStyles} styles
   * @param {(modelId: string) => import("./problem-note.js").Remedies} remediesFor
   */
  constructor(models, styles, remediesFor) {
    this.models = models;
    this.styles = styles;
    this.remediesFor = remediesFor;
    this.view = new View();
    this.toolbar = new Toolbar(byId("toolbar"), this.view);
    this.differences = new Differences(byId("differences"), this.view);
    this.view.addEventListener("change", (event) => this.#viewChanged(/** @type {CustomEvent} */ (event).detail));
  }

  /** Show a run instead of the current one. @param {import("./run.js").Run} run */
  show(run) {
    this.run = run;
    const { task } = run.question;
    const models = task.steps ? this.models.filter(({ id }) => task.models.includes(id)) : this.models;
    this.#panels = models.map(
      (model) => new Panel(model, run.question, this.view, this.styles, this.remediesFor(model.id)),
    );
    moveTogether(this.#panels.map((panel) => panel.picture));
    fill(byId("panels"), ...this.#panels.map((panel) => panel.element));
    byId("empty").hidden = true;
    const asked = models.filter(({ id }) => task.models.includes(id));
    const proofs = new Map(asked.map((model) => [model.id, proofsOf(model, run.question)]));
    Object.assign(this.view, { filter: "all", lit: null, minPrecision: 0, proofs });
    for (const panel of this.#panels) this.update(panel.model.id);
  }

  /** Update the panel of one model. @param {string} modelId */
  update(modelId) {
    const panel = this.#panels.find(({ model }) => model.id === modelId);
    const outcome = this.run?.outcomes.get(modelId);
    if (outcome) panel?.show(outcome);
    else panel?.showNotSupported();
    this.#compare();
  }

  #viewChanged(names) {
    if (names.includes("zoom")) this.#panels.forEach((panel) => panel.picture.update());
    if (["minScore", "minPrecision", "filter"].some((name) => names.includes(name))) this.#compare();
    this.#follow();
  }

  #compare() {
    const answered = this.#panels.filter((panel) => panel.timings && this.#answerOf(panel));
    const slowest = Math.max(...answered.map((panel) => panel.timings?.total ?? 0));
    answered.forEach((panel) => panel.timings?.scale(slowest));
    this.differences.show(
      answered.map((panel) => ({ model: panel.model.id, answer: this.#answerOf(panel), shapes: panel.shapes })),
    );
    this.toolbar.show(this.run?.question.task.result !== "text");
    this.#follow();
  }

  #follow() {
    for (const panel of this.#panels) {
      const kept = new Set(this.view.kept(panel.model.id, panel.shapes));
      panel.update((shape) => kept.has(shape) && this.differences.passes(shape));
    }
  }

  #answerOf(panel) {
    return this.run?.outcomes.get(panel.model.id)?.answer;
  }
}
