/** Entry point of the page: loads models, tasks and samples, then starts the playground. */

import { askForKey } from "./api-key.js";
import { listCatalog, listFields, listTasks } from "./api.js";
import { listSamples } from "./chosen-image.js";
import { byId, fill, html } from "./dom.js";
import { showModelTable } from "./model-table.js";
import { Playground } from "./playground.js";
import { startTheme } from "./theme.js";
import { trainingLine } from "./training.js";

/** Load the listings; request a key while the service requires one. */
async function listings() {
  try {
    return await Promise.all([listCatalog(), listTasks(), listFields(), listSamples()]);
  } catch (error) {
    if (error.code === "unauthorized" && (await askForKey())) return listings();
    throw error;
  }
}

async function start() {
  fill(byId("empty"), html("p", {}, "Loading models and tasks …"));
  try {
    const [catalog, tasks, fields, samples] = await listings();
    const served = catalog.filter((model) => model.served);
    const models = served.map((model) => ({ ...model, training: trainingLine(model, catalog) }));
    showModelTable(byId("model-table"), catalog, tasks);
    document.body.removeAttribute("data-loading");
    await new Playground(models, tasks, fields, samples).start();
  } catch (error) {
    const again = html("button", { type: "button", onclick: start }, "Try again");
    fill(byId("empty"), html("div", { class: "note failed", role: "alert" }, html("p", {}, error.message), again));
  }
}

startTheme();
start();
