/** Light or dark theme: the system's, until the user switches. */

import { byId } from "./dom.js";

const STORED = "diptych-theme";

/** Restore the stored theme and connect the button. */
export function startTheme() {
  const button = byId("theme");
  apply(localStorage.getItem(STORED));
  button.addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    localStorage.setItem(STORED, chosen);
    apply(chosen);
  });
}

function apply(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId("theme").textContent = isDark() ? "Light" : "Dark";
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
