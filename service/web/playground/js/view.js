/** How answers are looked at: the same for all panels at once. */

/**
 * @typedef {"all" | "both" | "left" | "right"} Filter
 * @typedef {{model: string, index: number, key: string}} Lit  a shape that is pointed at; `key` is its label's
 */

export class View extends EventTarget {
  minScore = 0;
  showsShapes = true;
  showsNames = true;
  zoom = 1;
  /** @type {Filter} */
  filter = "all";
  /** @type {Lit | null} */
  lit = null;

  /**
   * Change some of it, and tell who shows it.
   * @param {Partial<Pick<View, "minScore" | "showsShapes" | "showsNames" | "zoom" | "filter" | "lit">>} changes
   */
  change(changes) {
    Object.assign(this, changes);
    this.dispatchEvent(new CustomEvent("change", { detail: Object.keys(changes) }));
  }

  /**
   * Whether a shape is pointed at: itself, or one of its label in another model's panel.
   * @param {string} model
   * @param {number} index
   * @param {string} key
   */
  lights(model, index, key) {
    if (!this.lit) return false;
    return this.lit.model === model ? this.lit.index === index : key !== "" && this.lit.key === key;
  }
}
