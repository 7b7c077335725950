/** Recipes: steps of an analysis, shown as tasks of the first step's model. */

/**
 * The recipes of the client (client/diptych_client/recipes), which a test compares.
 * @type {Record<string, {description: string, steps: Record<string, any>[]}>}
 */
export const RECIPES = {
  "describe-everything": {
    description: "Every object, what it is, and a caption of the whole image.",
    steps: [
      { id: "things", task: "object_detection" },
      { id: "what", task: "region_description", each: "things" },
      { id: "all", task: "captioning", detail: "detailed" },
    ],
  },
  "read-everything": {
    description: "Every piece of text, read once in the image and once close up.",
    steps: [
      { id: "words", task: "ocr_with_regions" },
      { id: "closer", task: "ocr", each: "words", view: "crop" },
    ],
  },
  "both-models": {
    description: "Every object, captioned close up by each model.",
    steps: [
      { id: "things", task: "object_detection" },
      { id: "what", task: "captioning", each: "things", view: "crop", models: "all" },
    ],
  },
  "check-labels": {
    description: "Which labels are in the image, and a second look at each object that was found.",
    steps: [
      { id: "found", task: "open_vocabulary_detection", labels: "given" },
      {
        id: "close",
        task: "visual_question_answering",
        each: "found",
        view: "crop",
        question: "is there a {label} in the image?",
      },
    ],
  },
};

/**
 * Return the recipes whose tasks are all offered, as tasks of the model that answers first.
 * @param {import("./api.js").Task[]} tasks
 * @returns {import("./api.js").Task[]}
 */
export function recipeTasks(tasks) {
  const byTask = new Map(tasks.filter((task) => task.models.length).map((task) => [task.id, task]));
  const offered = Object.entries(RECIPES).filter(([, { steps }]) => steps.every((step) => byTask.has(step.task)));
  return offered.map(([id, { description, steps }]) => {
    const first = /** @type {import("./api.js").Task} */ (byTask.get(steps[0].task));
    const { labels } = first.parameters.properties;
    const needsLabels = steps[0].labels === "given";
    const parameters = needsLabels ? { properties: { labels }, required: ["labels"] } : { properties: {}, required: [] };
    const filled = steps.map((step) => (step.models ? { ...step, models: byTask.get(step.task)?.models } : step));
    return { id, description, result: first.result, models: first.models.slice(0, 1), parameters, steps: filled };
  });
}

/**
 * Return the steps of a request: labels and options of the form belong to each step.
 * @param {Record<string, any>[]} steps
 * @param {import("./api.js").Fields} fields
 */
export function filledSteps(steps, { labels, ...options }) {
  return steps.map((step) => ({ ...step, ...options, ...(step.labels ? { labels } : {}) }));
}
