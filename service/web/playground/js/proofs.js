/** What is proved about the objects that a question finds (docs/guarantees.md). */

import { percent } from "./names.js";

/**
 * @typedef {object} Proof
 * @property {Record<string, any>} fields  of the request that it is about
 * @property {number} min_precision
 * @property {number} confidence
 * @property {number} min_score
 * @property {number} max_labels
 * @property {number} num_images
 */

/** Fields that do not decide the answer. */
const UNDECIDING = new Set(["mask_format", "min_score", "min_precision"]);

/**
 * Return the proofs of a model for a question.
 * @param {import("./api.js").Model} model
 * @param {import("./run.js").Question} question
 * @returns {Proof[]}
 */
export function proofsOf({ proofs }, { task, fields }) {
  const asked = decisive({ task: task.id, ...fields });
  return task.steps ? [] : proofs.filter((proof) => decisive(proof.fields) === asked);
}

/**
 * Return what the proof says, or that there is none.
 * @param {string} model
 * @param {Proof | undefined} proof
 */
export function proofWords(model, proof) {
  if (!proof) return `${model}: not proved`;
  const { min_score: score, num_images: images, confidence } = proof;
  return `${model}: score at least ${score.toFixed(3)}, ${images} images, ${percent(confidence)} confidence`;
}

function decisive(fields) {
  return JSON.stringify(
    Object.entries(fields)
      .filter(([name]) => !UNDECIDING.has(name))
      .sort(),
  );
}
