/** Examples: a link with a sample for each task that several models support. */

import { sampleUrl } from "./chosen-image.js";
import { html } from "./dom.js";
import { title } from "./names.js";
import { linkOf } from "./run-link.js";

/**
 * @param {import("./api.js").Task[]} tasks
 * @param {import("./chosen-image.js").Sample[]} samples  at least one
 */
export function starters(tasks, samples) {
  const shared = tasks.filter((task) => task.models.length > 1);
  const scenes = samples.filter((sample) => !sample.is_photograph); // every model knows the scenes
  const cards = shared.map((task, index) => starter(task, scenes[index % scenes.length]));
  return html("ul", { class: "starters" }, ...cards);
}

function starter(task, sample) {
  return html(
    "li",
    {},
    html(
      "a",
      { class: "run-card", href: linkOf(task.id, {}, sample.id) },
      html("img", { src: sampleUrl(sample), alt: "" }),
      html("span", { class: "run-task" }, title(task.id)),
      html("span", { class: "quiet" }, task.description),
    ),
  );
}
