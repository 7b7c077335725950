/** The API key, if the service requires one: entered once, stored for this tab only. */

import { byId } from "./dom.js";

const STORED = "diptych-api-key";

/** Return the key, or null. */
export function apiKey() {
  return sessionStorage.getItem(STORED);
}

/**
 * Open the key dialog; resolve to whether a key was entered.
 * @returns {Promise<boolean>}
 */
export function askForKey() {
  const dialog = byId("key-dialog");
  const input = byId("key");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => {
      const isGiven = dialog.returnValue === "use" && input.value.trim() !== "";
      if (isGiven) sessionStorage.setItem(STORED, input.value.trim());
      input.value = "";
      resolve(isGiven);
    };
    dialog.addEventListener("close", closed, { once: true });
  });
}
