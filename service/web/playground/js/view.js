/** View state shared by all panels. */

/**
 * @typedef {"all" | "both" | "left" | "right"} Filter
 * @typedef {{model: string, index: number, key: string}} Lit  the highlighted shape; `key` is that of its label
 */

export class View extends EventTarget {
  minScore = 0.05; // shapes of almost no probability only hide others
  minPrecision = 0; // 0: minScore holds
  /** @type {Map<string, import("./proofs.js").Proof[]>} */
  proofs = new Map(); // model: proofs for the question shown
  showsShapes = true;
  showsNames = true;
  zoom = 1;
  /** @type {Filter} */
  filter = "all";
  /** @type {Lit | null} */
  lit = null;

  /**
   * Change properties and notify listeners.
   * @param {Partial<Pick<View, "minScore" | "minPrecision" | "showsShapes" | "showsNames" | "zoom" | "filter" | "lit">>} changes
   */
  change(changes) {
    Object.assign(this, changes);
    this.dispatchEvent(new CustomEvent("change", { detail: Object.keys(changes) }));
  }

  /** Return the proof of a model that the precision asks for. @param {string} model */
  proofOf(model) {
    const enough = (this.proofs.get(model) ?? []).filter(({ min_precision: proved }) => proved >= this.minPrecision);
    return enough.sort((one, other) => one.min_precision - other.min_precision)[0];
  }

  /**
   * Return the shapes of a model from the minimum score on, or those that are proved to be right so often.
   * @param {string} model
   * @param {import("./shapes.js").Shape[]} shapes
   */
  kept(model, shapes) {
    if (!this.minPrecision) return shapes.filter((shape) => (shape.score ?? 1) >= this.minScore);
    const proof = this.proofOf(model);
    const found = proof ? shapes.filter((shape) => shape.score >= proof.min_score) : [];
    return found.length > (proof?.max_labels ?? 0) ? [] : found;
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
