/** Display texts of ids and numbers. */

/** Fields whose id does not read as words. */
const WORDS = {
  auto: "Automatic",
  constrained: "Well-formed answers only",
  max_new_tokens: "Longest answer, tokens",
  min_object_px: "Smallest object, px",
  min_precision: "Proved precision",
  min_score: "Lowest score",
  nms_iou: "Overlap of boxes",
  num_beams: "Beams",
  overlap: "Overlap of tiles",
  top_p: "Probability of sampled tokens",
};
const ACRONYMS = new Set(["ocr", "api"]);
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const languages = new Intl.DisplayNames(["en"], { type: "language" });

/**
 * `ocr_with_regions` is `OCR with regions`, `both-models` is `Both models`, `num_beams` is `Beams`.
 * @param {string} id
 */
export function title(id) {
  if (id in WORDS) return WORDS[id];
  const text = id
    .split(/[_-]/)
    .map((word) => (ACRONYMS.has(word) ? word.toUpperCase() : word))
    .join(" ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * 2610752 is `2.6M`.
 * @param {number} value
 */
export function compact(value) {
  return COMPACT.format(value);
}

/**
 * Milliseconds as text, with tenths for short times.
 * @param {number} value
 */
export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/**
 * `de` is `German`.
 * @param {string} code
 */
export function language(code) {
  return languages.of(code) ?? code;
}

/**
 * `1 object`, `2 objects`.
 * @param {number} count
 * @param {string} noun
 */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * 0.975 is `97.5 %`.
 * @param {number} share
 */
export function percent(share) {
  return `${Math.round(1000 * share) / 10} %`;
}
