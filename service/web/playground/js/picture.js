/** Image with an overlay, zoomed and panned together with the other pictures of the page. */

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
   * @param {string} name  accessible name
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
        "aria-label": `${name}: annotated image. Plus, minus and 0 zoom; arrow keys pan.`,
        onkeydown: (event) => this.#typed(event),
        onpointerdown: (event) => this.#grab(event),
      },
      this.canvas,
    );
    this.element.addEventListener("wheel", (event) => this.#wheeled(event), { passive: false });
    this.element.style.setProperty("--ratio", String(image.width / image.height));
    this.update();
  }

  /** Apply the view's zoom around the current centre. */
  update() {
    const middle = this.position();
    this.canvas.style.setProperty("--zoom", String(this.view.zoom));
    this.element.toggleAttribute("data-zoomed", this.view.zoom > 1);
    this.moveTo(middle);
  }

  /** Return the position of the centre in the image, 0 to 1 across and down. @returns {[number, number]} */
  position() {
    const { scrollLeft, scrollTop, clientWidth, clientHeight, scrollWidth, scrollHeight } = this.element;
    return [(scrollLeft + clientWidth / 2) / scrollWidth || 0.5, (scrollTop + clientHeight / 2) / scrollHeight || 0.5];
  }

  /** Centre a position of the image. @param {[number, number]} position */
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
    if (!event.ctrlKey) return; // a plain wheel scrolls the page
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

/** Zoom all pictures; factor 0 resets. @param {import("./view.js").View} view @param {number} factor */
export function zoomBy(view, factor) {
  view.change({ zoom: clamp(view.zoom * factor, 1, MAX_ZOOM) });
}

/** Synchronise the scroll positions of pictures. @param {Picture[]} pictures */
export function moveTogether(pictures) {
  for (const picture of pictures) {
    picture.element.addEventListener("scroll", () => {
      if (picture.element.matches(":hover, :focus"))
        pictures.filter((other) => other !== picture).forEach((other) => other.moveTo(picture.position()));
    });
  }
}
