/** One question to several models concurrently, with the outcome of each. */

import { analyze, predict } from "./api.js";
import { filledSteps } from "./recipes.js";

/**
 * @typedef {object} Question
 * @property {import("./chosen-image.js").ChosenImage} image
 * @property {import("./api.js").Task} task
 * @property {import("./api.js").Fields} fields  parameters and options that are set
 *
 * @typedef {object} Outcome
 * @property {"waiting" | "answered" | "failed" | "stopped"} state
 * @property {string} text  text generated so far
 * @property {Record<string, any>} [found]  with tiles: the objects of the views so far, not merged
 * @property {Record<string, any>[]} [steps]  of an analysis, with the answers so far
 * @property {import("./api.js").Answer} [answer]
 * @property {any} [error]
 */

export class Run {
  #abort = new AbortController();

  /**
   * @param {Question} question
   * @param {boolean} isStreamed
   */
  constructor(question, isStreamed) {
    this.question = question;
    this.isStreamed = isStreamed;
    /** @type {Map<string, Outcome>} */
    this.outcomes = new Map(question.task.models.map((id) => [id, { state: "waiting", text: "" }]));
  }

  /** True while a model has not finished. */
  get isAtWork() {
    return [...this.outcomes.values()].some((outcome) => outcome.state === "waiting");
  }

  /** Cancel the requests in flight. */
  stop() {
    this.#abort.abort();
  }

  /**
   * Call every model; resolve when each has answered or failed.
   * @param {(modelId: string) => void} onChange
   */
  async start(onChange) {
    await Promise.all([...this.outcomes.keys()].map((modelId) => this.ask(modelId, onChange)));
  }

  /**
   * Call one model, for the first time or again.
   * @param {string} modelId
   * @param {(modelId: string) => void} onChange
   */
  async ask(modelId, onChange) {
    const outcome = /** @type {Outcome} */ ({ state: "waiting", text: "" });
    this.outcomes.set(modelId, outcome);
    onChange(modelId);
    const onPiece = ({ text, result }) => {
      outcome.text += text;
      if (result) outcome.found = joined(outcome.found ?? {}, result);
      onChange(modelId);
    };
    const onAnswer = (steps) => {
      outcome.steps = steps;
      onChange(modelId);
    };
    try {
      const { image, task, fields } = this.question;
      outcome.answer = task.steps
        ? await analyze(image, filledSteps(task.steps, fields), this.#abort.signal, onAnswer)
        : await predict(image, this.#fieldsFor(modelId), this.#abort.signal, onPiece);
      outcome.state = "answered";
    } catch (error) {
      outcome.error = error;
      outcome.state = this.#abort.signal.aborted ? "stopped" : "failed";
    }
    onChange(modelId);
  }

  #fieldsFor(modelId) {
    const { task, fields } = this.question;
    return { task: task.id, model: modelId, ...fields, ...(this.isStreamed ? { stream: true } : {}) };
  }
}

/** Return the objects of two results as one. */
function joined(one, other) {
  return Object.fromEntries(Object.entries(other).map(([kind, items]) => [kind, [one[kind] ?? [], items].flat()]));
}
