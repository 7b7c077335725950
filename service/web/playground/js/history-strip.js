/** The runs of this session, newest first; choosing one shows its answers again. */

import { fill, html } from "./dom.js";
import { title } from "./names.js";

const MAX_RUNS = 30;

export class HistoryStrip {
  /** @type {import("./run.js").Run[]} */
  #runs = [];

  /**
   * @param {HTMLElement} section
   * @param {(run: import("./run.js").Run) => void} onChoose
   */
  constructor(section, onChoose) {
    this.section = section;
    this.onChoose = onChoose;
  }

  /** @param {import("./run.js").Run} run */
  add(run) {
    this.#runs = [run, ...this.#runs].slice(0, MAX_RUNS);
    this.mark(run);
  }

  /** Mark the current run. @param {import("./run.js").Run} shown */
  mark(shown) {
    this.section.hidden = false;
    fill(this.section.querySelector("ol"), ...this.#runs.map((run) => html("li", {}, this.#card(run, run === shown))));
  }

  #card(run, isShown) {
    const { image, task, fields } = run.question;
    const given = Object.values(fields).flat().join(", ");
    return html(
      "button",
      { type: "button", class: "run-card", "aria-current": isShown ? "true" : null, onclick: () => this.onChoose(run) },
      html("img", { src: image.thumbnail, alt: "" }),
      html("span", { class: "run-task" }, title(task.id)),
      html("span", { class: "run-given quiet" }, given || image.name),
    );
  }
}
