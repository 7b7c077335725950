/**
 * Questions as URL fragments (after `#`), which browsers do not send: no server log contains a question.
 *
 *     #task=open_vocabulary_detection&labels=red+star&labels=circle&max_new_tokens=50&sample=gqiv
 */

/**
 * @typedef {object} Link
 * @property {string} task
 * @property {string | null} sample
 * @property {boolean} isOfOwnImage  which the link does not include
 * @property {Record<string, string[]>} fields
 */

const NOT_FIELDS = new Set(["task", "sample", "image"]);

/**
 * Return the link of a question.
 * @param {string} task
 * @param {import("./api.js").Fields} fields
 * @param {string | null} sample
 */
export function linkOf(task, fields, sample) {
  const parts = new URLSearchParams({ task });
  for (const [name, value] of Object.entries(fields)) {
    for (const each of Array.isArray(value) ? value : [value]) parts.append(name, String(each));
  }
  parts.set(sample ? "sample" : "image", sample ?? "own");
  return `#${parts}`;
}

/**
 * Return the question of a link, with values as text; null if it names no task.
 * @param {string} hash
 * @returns {Link | null}
 */
export function readLink(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const task = parts.get("task");
  if (!task) return null;
  const names = [...new Set(parts.keys())].filter((name) => !NOT_FIELDS.has(name));
  const fields = Object.fromEntries(names.map((name) => [name, parts.getAll(name)]));
  return { task, sample: parts.get("sample"), isOfOwnImage: parts.get("image") === "own", fields };
}
