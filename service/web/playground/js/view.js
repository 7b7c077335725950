/** View state shared by all panels. */

/**
 * @typedef {"all" | "both" | "left" | "right"} Filter
 * @typedef {{model: string, index: number, key: string}} Lit  the highlighted shape; `key` is that of its label
 */

export class View extends EventTarget {
  minScore = 0.05; // shapes of almost no probability only hide others
  showsShapes = true;
  showsNames = true;
  zoom = 1;
  /** @type {Filter} */
  filter = "all";
  /** @type {Lit | null} */
  lit = null;

  /**
   * Change properties and notify listeners.
   * @param {Partial<Pick<View, "minScore" | "showsShapes" | "showsNames" | "zoom" | "filter" | "lit">>} changes
   */
  change(changes) {
    Object.assign(this, changes);
    this.dispatchEvent(new CustomEvent("change", { detail: Object.keys(changes) }));
  }

  /**
   * Return true if a shape is highlighted: itself, or one with its label in another model's panel.
   * @param {string} model
   * @param {number} index
   * @param {string} key
   */
  lights(model, index, key) {
    if (!this.lit) return false;
    return this.lit.model === model ? this.lit.index === index : key !== "" && this.lit.key === key;
  }
}
