/** Facts of an answer besides its result: tokens, cache, raw text. */

import { html } from "./dom.js";
import { counted, percent } from "./names.js";

/** Return token counts, vision cache outcome, the meaning of the scores, what is proved, an early end. @param {import("./api.js").Answer} answer */
export function usage({
  usage: { image_tokens: image, prompt_tokens: prompt, generated_tokens: written },
  vision_cache: cache,
  finish_reason: reason,
  calibrated,
  familiarity,
  guarantee,
  result,
}) {
  const facts = [
    ["Tokens", `${image} image + ${prompt} prompt → ${written}`],
    ["Vision cache", cache],
    ...("text" in result ? [] : [["Scores", calibrated ? "calibrated probabilities" : "not calibrated"]]),
    ...((familiarity ?? 1) < 0.01 ? [["Image", "unlike the images this model was calibrated on"]] : []),
    ...(guarantee ? [["Proved", provedWords(guarantee)]] : []),
    ...(reason === "length" ? [["Ended", "at the token limit"]] : []),
  ];
  return html(
    "dl",
    { class: "usage" },
    ...facts.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))),
  );
}

/** @param {{min_precision: number, confidence: number, left_out: number}} guarantee */
function provedWords({ min_precision: share, confidence, left_out: leftOut }) {
  return `${percent(share)} right with ${percent(confidence)} confidence; ${leftOut} left out`;
}

/** Return the generated text in a disclosure. @param {import("./api.js").Answer} answer */
export function rawText({ raw_text: text }) {
  const size = counted(text.length, "character");
  return html(
    "details",
    { class: "raw-text" },
    html("summary", {}, `Raw text, ${size}`),
    html("pre", { class: "raw", tabindex: 0 }, text),
  );
}
