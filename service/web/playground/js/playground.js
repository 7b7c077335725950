/** Controller of the page: form to run, run to link, link to form. */

import { askForKey } from "./api-key.js";
import { Answers } from "./answers.js";
import { copyButton } from "./copy-buttons.js";
import { byId, fill, html } from "./dom.js";
import { HistoryStrip } from "./history-strip.js";
import { ImageInput } from "./image-input.js";
import { LabelStyles } from "./label-styles.js";
import { counted, milliseconds } from "./names.js";
import { OptionsForm } from "./options-form.js";
import { recipeTasks } from "./recipes.js";
import { linkOf, readLink } from "./run-link.js";
import { Run } from "./run.js";
import { shapesOf } from "./shapes.js";
import { starters } from "./starters.js";
import { TaskChoice } from "./task-choice.js";
import { TaskForm } from "./task-form.js";

const BEGIN = "Choose an image and a task, then press Run: each model answers in its panel. Or start with an example.";
const OWN_IMAGE = "This link does not include its image. Choose an image, then press Run.";

export class Playground {
  /** @type {Run | null} */
  #run = null;
  #runs = /** @type {Run[]} */ ([]);

  /**
   * @param {import("./api.js").Model[]} models
   * @param {import("./api.js").Task[]} tasks
   * @param {Record<string, any>} fields  of a request, by name
   * @param {import("./chosen-image.js").Sample[]} samples
   */
  constructor(models, tasks, fields, samples) {
    this.samples = samples;
    this.canStream = "stream" in fields;
    const parameters = tasks.flatMap((task) => Object.keys(task.parameters.properties));
    this.options = new OptionsForm(fields, parameters);
    this.images = new ImageInput(samples, () => this.#suggest());
    this.form = new TaskForm(byId("parameters"), this.images.regionEditor);
    this.tasks = new TaskChoice([...tasks, ...recipeTasks(tasks)], (task) => this.#taskChosen(task));
    this.answers = new Answers(models, new LabelStyles(), (modelId) => this.#remediesFor(modelId));
    this.history = new HistoryStrip(byId("history"), (run) => this.#showAgain(run));
  }

  /** Register listeners and open the link of the page's URL. */
  async start() {
    const ask = byId("ask");
    ask.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#runOrStop();
    });
    ask.addEventListener("input", () => this.#markStale());
    ask.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#runOrStop();
    });
    const isWithoutImage = () => readLink(location.hash)?.isOfOwnImage;
    const copied = () => (isWithoutImage() ? "Copied without its image" : "Copied");
    byId("run-bar").append(copyButton("Copy link", () => location.href, copied));
    window.addEventListener("hashchange", () => this.#hashChanged());
    this.#showNotice(html("p", {}, BEGIN), starters(this.tasks.tasks, this.samples));
    if (readLink(location.hash)) await this.#follow(readLink(location.hash));
    else await this.images.chooseSample(this.samples[0]?.id ?? null);
  }

  #taskChosen(task) {
    this.form.show(task);
    this.#suggest();
  }

  #suggest() {
    this.form.suggest(this.images.image?.sample?.examples ?? {});
    this.#markStale();
    this.#showButton();
  }

  /** Dim the answers while the form asks another question, or about another image. */
  #markStale() {
    const isStale = this.#run !== null && !isSameQuestion(this.#question(), this.#run.question);
    byId("panels").toggleAttribute("data-stale", isStale);
    byId("stale").hidden = !isStale;
  }

  #question() {
    const fields = { ...this.form.values(), ...this.options.values() };
    return { image: this.images.image, task: this.tasks.task, fields };
  }

  #runOrStop() {
    if (this.#run?.isAtWork) this.#run.stop();
    else this.#ask();
  }

  /** Run the form; the answers are busy until the last model has answered. */
  async #ask() {
    byId("answers").setAttribute("aria-busy", "true");
    await this.images.loading;
    await this.#askForm();
    byId("answers").setAttribute("aria-busy", String(this.#run?.isAtWork ?? false));
  }

  #askForm() {
    if (!this.images.image) return this.images.requireImage();
    for (const field of this.#fields()) field.showProblem("");
    this.images.showProblem("");
    if (!this.form.check()) return undefined;
    const run = new Run(this.#question(), this.canStream);
    this.#run?.stop();
    this.#runs.push(run);
    this.#show(run);
    this.history.add(run);
    return run.start((modelId) => this.#changed(run, modelId));
  }

  #show(run) {
    this.#run = run;
    const link = linkTo(run.question);
    const write = link === location.hash ? history.replaceState : history.pushState;
    write.call(history, { run: this.#runs.indexOf(run) }, "", link);
    this.answers.show(run);
    this.#showButton();
    this.#markStale();
    const { top } = byId("answers").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) byId("answers").scrollIntoView();
  }

  /** Show an earlier run and fill the form with its question. @param {Run} run */
  #showAgain(run) {
    const { image, task, fields } = run.question;
    this.images.show(image);
    this.tasks.choose(task.id);
    this.form.set(fields);
    this.options.set(fields);
    this.#show(run);
    this.history.mark(run);
  }

  #changed(run, modelId) {
    if (run !== this.#run) return;
    this.answers.update(modelId);
    this.#showButton();
    const outcome = run.outcomes.get(modelId);
    if (outcome.state === "failed") this.#showRefusal(outcome.error);
    const text = outcomeText(outcome);
    if (text) byId("announcement").textContent = `${modelId}: ${text}`;
  }

  /** Show at its field why a model refuses it. @param {import("./api.js").ApiError} error */
  #showRefusal({ param, message }) {
    if (param === "image") this.images.showProblem(message);
    this.#fieldOf(param)?.showProblem(message);
  }

  /** @param {string | null} param  of an error: options of the form are those of each step of a recipe */
  #fieldOf(param) {
    return this.#fields().find(({ name }) => name === param?.replace(/^steps\[\d+\]\./, ""));
  }

  #fields() {
    return [...this.form.fields, ...this.options.fields];
  }

  #showButton() {
    const isAtWork = this.#run?.isAtWork ?? false;
    byId("run").textContent = isAtWork ? "Stop" : "Run";
    byId("run").toggleAttribute("data-at-work", isAtWork);
    byId("run").toggleAttribute("disabled", !isAtWork && !this.images.image);
  }

  /** Handle navigation to a link or back to a run. */
  #hashChanged() {
    const run = this.#runs[history.state?.run];
    if (run) return this.#showAgain(run);
    const link = readLink(location.hash);
    return link && this.#follow(link);
  }

  /** Fill the form from a link, and run it if nothing is missing. @param {any} link */
  async #follow({ task, sample, isOfOwnImage, fields }) {
    const sampleId = sample ?? (this.images.image || isOfOwnImage ? null : this.samples[0]?.id);
    await this.images.chooseSample(sampleId ?? null);
    if (!this.tasks.choose(task)) {
      const message = `No served model supports the task ${task}.`;
      return this.#showNotice(html("p", { class: "failed", role: "alert" }, message));
    }
    this.form.set(fields);
    this.options.set(fields);
    this.#suggest();
    return isOfOwnImage && !this.images.image ? this.images.requireImage(OWN_IMAGE) : this.#ask();
  }

  /** Show nodes in place of the answers. @param {...Node} nodes */
  #showNotice(...nodes) {
    byId("empty").hidden = false;
    fill(byId("empty"), ...nodes);
  }

  /** @param {string} modelId @returns {import("./problem-note.js").Remedies} */
  #remediesFor(modelId) {
    const run = this.#run;
    const again = () => run?.ask(modelId, (id) => this.#changed(run, id));
    const change = (param) => {
      this.form.reveal(param);
      const task = byId("ask").querySelector("[name=task]:checked");
      (param === "image" ? byId("choose-file") : (this.#fieldOf(param) ?? task)).focus();
    };
    const instead = (param) => this.form.instead(param);
    return { again, change, instead, enterKey: async () => (await askForKey()) && again() };
  }
}

/** @param {any} question  whose image may be null */
function linkTo({ image, task, fields }) {
  return linkOf(task.id, fields, image?.sample?.id ?? null);
}

/** Compare two questions; links do not tell the images of a person apart. */
function isSameQuestion(question, other) {
  const isSameImage = (question.image?.sample ?? question.image) === (other.image.sample ?? other.image);
  return isSameImage && linkTo(question) === linkTo(other);
}

/** Return the announcement for a finished model; empty until then. @param {any} outcome */
function outcomeText({ state, answer, error }) {
  if (state === "failed") return error.message;
  if (state !== "answered") return "";
  const { text } = answer.result;
  const what = text === undefined ? counted(shapesOf(answer.result).length, "object") : text;
  return `${what}, in ${milliseconds(answer.wall_ms ?? answer.timings_ms.total)}`;
}
