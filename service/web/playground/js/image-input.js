/** Image input: file, drop, paste, camera or sample. */

import { takePhoto } from "./camera.js";
import { chosenImage, sampleImage, sampleUrl } from "./chosen-image.js";
import { byId, fill, html } from "./dom.js";
import { RegionEditor } from "./region-editor.js";

export class ImageInput {
  /** @type {import("./chosen-image.js").ChosenImage | null} */
  image = null;
  /** Resolves when the latest chosen image is loaded. */
  loading = Promise.resolve();
  #latest = 0;

  /**
   * @param {import("./chosen-image.js").Sample[]} samples
   * @param {() => void} onChange
   */
  constructor(samples, onChange) {
    this.samples = samples;
    this.onChange = onChange;
    this.regionEditor = new RegionEditor();
    this.preview = byId("preview");
    this.problem = byId("image-problem");
    this.#listen();
    fill(byId("samples"), ...samples.map((sample) => this.#sampleButton(sample)));
  }

  /** Choose the sample of this id, if it exists. @param {string | null} id */
  async chooseSample(id) {
    const sample = this.samples.find((each) => each.id === id);
    if (sample) await this.#take(() => sampleImage(sample));
  }

  /** Show an image. @param {import("./chosen-image.js").ChosenImage} image */
  show(image) {
    this.image = image;
    this.problem.hidden = true;
    this.regionEditor.over(image);
    const picture = html("img", {
      src: image.url,
      alt: image.sample?.description ?? `The chosen image, ${image.name}`,
    });
    fill(this.preview, html("div", { class: "framed" }, picture, this.regionEditor.element));
    byId("image-note").hidden = !image.note;
    fill(byId("image-note"), `${image.note} `, html("a", { href: image.url, download: image.name }, "Save it"));
    byId("image-name").textContent = `${image.name} · ${image.width} × ${image.height}`;
    for (const button of byId("samples").children)
      button.setAttribute("aria-pressed", String(button.dataset.sample === image.sample?.id));
    this.onChange();
  }

  /** Show why there is no image. @param {string} text */
  #clear(text) {
    this.image = null;
    fill(this.preview);
    byId("image-note").hidden = true;
    byId("image-name").textContent = "";
    for (const button of byId("samples").children) button.setAttribute("aria-pressed", "false");
    this.showProblem(text);
    this.onChange();
  }

  /** Show that an image is missing, if no problem of it is shown. @param {string} [text] */
  requireImage(text = "Choose an image first.") {
    if (this.problem.hidden) this.showProblem(text);
    byId("choose-file").focus();
  }

  #listen() {
    const input = byId("file");
    byId("choose-file").addEventListener("click", () => input.click());
    input.addEventListener("change", () => this.#takeFile(input.files[0]));
    document.addEventListener("paste", (event) => this.#takeFile(imageOf(event.clipboardData), event));
    document.addEventListener("drop", (event) => this.#dropped(event));
    document.addEventListener("dragover", (event) => this.#dragged(event, true));
    document.addEventListener("dragleave", (event) => event.relatedTarget || this.#dragged(event, false));
    const camera = byId("camera");
    camera.hidden = !navigator.mediaDevices?.getUserMedia;
    camera.addEventListener("click", () => this.#take(takePhoto));
  }

  #dragged(event, isOver) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.toggleAttribute("data-dropping", isOver);
  }

  #dropped(event) {
    this.#dragged(event, false);
    this.#takeFile(event.dataTransfer?.files[0], event);
  }

  #takeFile(file, event = null) {
    if (!file) return;
    event?.preventDefault();
    this.#take(() => chosenImage(file, file.name));
  }

  #take(load) {
    this.loading = this.#load(load);
    return this.loading;
  }

  /** Show the image that `load` returns, or why it has none, unless a later one was chosen meanwhile. */
  async #load(load) {
    const turn = ++this.#latest;
    this.preview.toggleAttribute("data-loading", true);
    try {
      const image = await load();
      if (image && turn === this.#latest) this.show(image);
    } catch (error) {
      if (turn === this.#latest) this.#clear(error.message);
    }
    if (turn === this.#latest) this.preview.toggleAttribute("data-loading", false);
  }

  /** Show a problem of the image; an empty text hides it. @param {string} text */
  showProblem(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
  }

  #sampleButton(sample) {
    return html(
      "button",
      {
        type: "button",
        class: "sample",
        "data-sample": sample.id,
        "aria-pressed": "false",
        onclick: () => this.chooseSample(sample.id),
      },
      html("img", { src: sampleUrl(sample), alt: `Sample: ${sample.description}`, loading: "lazy" }),
    );
  }
}

/** @param {DataTransfer | null} data */
function imageOf(data) {
  return [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
