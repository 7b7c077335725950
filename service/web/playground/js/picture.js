/** An image that can be zoomed and moved, with something over it; all pictures of a page move as one. */

import { html } from "./dom.js";
import { clamp } from "./geometry.js";

export const MAX_ZOOM = 8;
const STEP = 1.25;
const KEYS = { "+": STEP, "=": STEP, "-": 1 / STEP, 0: 0 };

export class Picture {
  /**
   * @param {import("./chosen-image.js").ChosenImage} image
   * @param {HTMLElement} overlay
   * @param {import("./view.js").View} view
   * @param {string} name  what a screen reader says
   */
  constructor(image, overlay, view, name) {
    this.view = view;
    this.canvas = html(
      "div",
      { class: "canvas" },
      html("img", { src: image.url, alt: image.sample?.description ?? image.name, draggable: "false" }),
      overlay,
    );
    this.element = html(
      "div",
      {
        class: "picture",
        tabindex: 0,
        role: "group",
        "aria-label": `${name}: image with what was found. Plus, minus and 0 zoom, arrows move.`,
        onkeydown: (event) => this.#typed(event),
        onpointerdown: (event) => this.#grab(event),
      },
      this.canvas,
    );
    this.element.addEventListener("wheel", (event) => this.#wheeled(event), { passive: false });
    this.element.style.setProperty("--ratio", String(image.width / image.height));
    this.update();
  }

  /** Take the zoom of the view; the middle stays where it is. */
  update() {
    const middle = this.position();
    this.canvas.style.setProperty("--zoom", String(this.view.zoom));
    this.element.toggleAttribute("data-zoomed", this.view.zoom > 1);
    this.moveTo(middle);
  }

  /** Return which part of the image is in the middle, 0 to 1 across and down. @returns {[number, number]} */
  position() {
    const { scrollLeft, scrollTop, clientWidth, clientHeight, scrollWidth, scrollHeight } = this.element;
    return [(scrollLeft + clientWidth / 2) / scrollWidth || 0.5, (scrollTop + clientHeight / 2) / scrollHeight || 0.5];
  }

  /** Bring a part of the image into the middle. @param {[number, number]} position */
  moveTo([across, down]) {
    const { clientWidth, clientHeight, scrollWidth, scrollHeight } = this.element;
    this.element.scrollTo(across * scrollWidth - clientWidth / 2, down * scrollHeight - clientHeight / 2);
  }

  #typed(event) {
    const factor = event.ctrlKey || event.metaKey ? undefined : KEYS[event.key];
    if (factor === undefined) return;
    event.preventDefault();
    zoomBy(this.view, factor);
  }

  #wheeled(event) {
    if (!event.ctrlKey) return; // or the page could not be scrolled past
    event.preventDefault();
    zoomBy(this.view, Math.exp(-event.deltaY / 200));
  }

  #grab(event) {
    if (event.pointerType !== "mouse" || event.button !== 0 || this.view.zoom === 1) return;
    const move = ({ movementX, movementY }) => this.element.scrollBy(-movementX, -movementY);
    this.element.addEventListener("pointermove", move);
    window.addEventListener("pointerup", () => this.element.removeEventListener("pointermove", move), { once: true });
  }
}

/** Zoom all pictures; 0 shows them whole. @param {import("./view.js").View} view @param {number} factor */
export function zoomBy(view, factor) {
  view.change({ zoom: clamp(view.zoom * factor, 1, MAX_ZOOM) });
}

/** Let pictures show the same part: where one is moved, the others follow. @param {Picture[]} pictures */
export function moveTogether(pictures) {
  for (const picture of pictures) {
    picture.element.addEventListener("scroll", () => {
      if (picture.element.matches(":hover, :focus"))
        pictures.filter((other) => other !== picture).forEach((other) => other.moveTo(picture.position()));
    });
  }
}
