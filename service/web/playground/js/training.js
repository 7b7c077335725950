/** Models that know drawn scenes only, and the command that serves a released one. */

/** The catalog's feature of such a model. */
const DRAWN_ONLY = "rendered scenes only";

/**
 * Return a line about what a model was trained on; empty for one that knows photographs.
 * @param {import("./api.js").Model} model
 * @param {import("./api.js").Model[]} catalog
 */
export function trainingLine(model, catalog) {
  if (!model.features.includes(DRAWN_ONLY)) return "";
  const isReleased = (other) =>
    other.serve_command && other.family === model.family && !other.adapter_of && !other.features.includes(DRAWN_ONLY);
  const command = catalog.find(isReleased)?.serve_command;
  return `Trained on drawn scenes only.${command ? ` For photographs: ${command}` : ""}`;
}
