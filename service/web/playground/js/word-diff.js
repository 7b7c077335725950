/** Word-by-word difference of two texts. */

/**
 * @typedef {"both" | "left" | "right"} Side
 * @typedef {{side: Side, words: string[]}} Passage
 */

/**
 * Return the texts as passages of both or of one alone, in reading order.
 *
 * The common passages are the longest common subsequence of words.
 * @param {string} left
 * @param {string} right
 * @returns {Passage[]}
 */
export function diffWords(left, right) {
  const [a, b] = [words(left), words(right)];
  const lengths = commonLengths(a, b);
  const passages = /** @type {Passage[]} */ ([]);
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) (add(passages, "both", a[i++]), j++);
    else if (j === b.length || (i < a.length && lengths[i + 1][j] >= lengths[i][j + 1])) add(passages, "left", a[i++]);
    else add(passages, "right", b[j++]);
  }
  return passages;
}

/**
 * Return how many words the passages of a side have.
 * @param {Passage[]} passages
 * @param {Side} side
 */
export function countWords(passages, side) {
  return passages.filter((passage) => passage.side === side).reduce((sum, passage) => sum + passage.words.length, 0);
}

/** @param {string} text */
function words(text) {
  return text.split(/\s+/).filter(Boolean);
}

/** Return the length of the longest common subsequence of the remainders at each pair of positions. */
function commonLengths(a, b) {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  return lengths;
}

function add(passages, side, word) {
  const last = passages.at(-1);
  if (last?.side === side) last.words.push(word);
  else passages.push({ side, words: [word] });
}
