/** Task choice: first the tasks that several models support; recipes below the parameters. */

import { byId, fill, html } from "./dom.js";
import { title } from "./names.js";

export class TaskChoice {
  /**
   * @param {import("./api.js").Task[]} tasks
   * @param {(task: import("./api.js").Task) => void} onChange
   */
  constructor(tasks, onChange) {
    this.tasks = tasks.filter((task) => task.models.length);
    this.onChange = onChange;
    const shared = this.tasks.filter((task) => task.models.length > 1);
    const single = this.tasks.filter((task) => task.models.length === 1 && !task.steps);
    const recipes = this.tasks.filter((task) => task.steps);
    fill(byId("tasks"), this.#group("Side by side", shared), this.#group("One model", single));
    fill(byId("recipes"), this.#group("Many questions at once", recipes)); // parameters stay above Run
    this.choose((shared[0] ?? single[0]).id);
  }

  /** Choose the task of this id; return false if there is none. @param {string} id */
  choose(id) {
    const task = this.tasks.find((each) => each.id === id);
    if (!task) return false;
    byId(`task-${id}`).checked = true;
    this.#chosen(task);
    return true;
  }

  #chosen(task) {
    this.task = task;
    byId("task-description").textContent = task.description;
    this.onChange(task);
  }

  #group(name, tasks) {
    if (!tasks.length) return null;
    const pills = tasks.map((task) =>
      html(
        "label",
        { class: "pill" },
        html("input", {
          type: "radio",
          name: "task",
          id: `task-${task.id}`,
          value: task.id,
          onchange: () => this.#chosen(task),
        }),
        title(task.id),
      ),
    );
    return html(
      "div",
      { class: "task-group" },
      html("span", { class: "overline" }, name),
      html("div", { class: "pills" }, ...pills),
    );
  }
}
