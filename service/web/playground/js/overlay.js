/** Overlay of an answer's shapes on its image: outlines in SVG, labels in HTML at text size. */

import { fill, html, svg } from "./dom.js";
import { boxRing, pathData } from "./geometry.js";
import { labelKey } from "./shapes.js";
import { placeTags } from "./tag-places.js";

const NO_SCALING = { "vector-effect": "non-scaling-stroke" };

export class Overlay {
  #region = null;
  /** @type {{shape: import("./shapes.js").Shape, group: any, tag: any}[]} */
  #drawn = [];

  /**
   * @param {string} model
   * @param {import("./view.js").View} view
   * @param {import("./label-styles.js").LabelStyles} styles
   */
  constructor(model, view, styles) {
    this.model = model;
    this.view = view;
    this.styles = styles;
    this.svg = svg("svg", { class: "shapes", preserveAspectRatio: "none", "aria-hidden": true });
    this.tags = html("div", { class: "tags", "aria-hidden": true });
    this.element = html("div", { class: "overlay" }, this.svg, this.tags);
    new ResizeObserver(() => this.#place()).observe(this.element);
  }

  /**
   * Draw the region of the request.
   * @param {import("./geometry.js").Box} box
   * @param {{width: number, height: number}} image
   */
  drawRegion(box, image) {
    this.#region = svg("path", { class: "region", d: pathData([boxRing(box)]), ...NO_SCALING });
    this.draw([], image);
  }

  /**
   * Draw shapes in the pixels of an image.
   * @param {import("./shapes.js").Shape[]} shapes
   * @param {{width: number, height: number}} image
   */
  draw(shapes, image) {
    this.image = image;
    this.svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    this.#drawn = shapes.map((shape) => ({ shape, group: this.#group(shape), tag: this.#tag(shape) }));
    // Largest first: a small shape within a large one can be hovered.
    const size = ({ shape: { box } }) => (box[2] - box[0]) * (box[3] - box[1]);
    fill(this.svg, this.#region, ...[...this.#drawn].sort((a, b) => size(b) - size(a)).map(({ group }) => group));
    fill(this.tags, ...this.#drawn.map(({ tag }) => tag));
  }

  /** Apply the view: visibility, filters, highlight. @param {(shape: import("./shapes.js").Shape) => boolean} isShown */
  update(isShown) {
    this.element.toggleAttribute("data-lighting", this.view.lit !== null);
    this.svg.toggleAttribute("data-off", !this.view.showsShapes);
    for (const { shape, group, tag } of this.#drawn) {
      const isLit = this.view.lights(this.model, shape.index, labelKey(shape.label));
      for (const element of [group, tag]) {
        element.toggleAttribute("data-off", !isShown(shape));
        element.toggleAttribute("data-lit", isLit);
      }
    }
    this.tags.toggleAttribute("data-off", !this.view.showsShapes || !this.view.showsNames);
    this.#place();
  }

  #group(shape) {
    const { color, dash } = this.styles.of(shape.label);
    const d = pathData(shape.rings);
    const point = (lit) => () => this.view.change({ lit });
    return svg(
      "g",
      {
        class: `shape ${shape.isFilled ? "filled" : "framed"}`,
        "data-index": shape.index,
        "data-label": shape.label,
        onpointerenter: point({ model: this.model, index: shape.index, key: labelKey(shape.label) }),
        onpointerleave: point(null),
      },
      svg("path", { class: "halo", d, ...NO_SCALING }),
      svg("path", {
        class: "line",
        d,
        stroke: color,
        fill: color,
        "fill-rule": "evenodd",
        "stroke-dasharray": dash,
        ...NO_SCALING,
      }),
    );
  }

  #tag(shape) {
    const { color, ink } = this.styles.of(shape.label);
    const score = html("span", { class: "tag-score" }, shape.score?.toFixed(2) ?? "–");
    const tag = html(
      "span",
      { class: "tag" },
      shape.label ? html("span", { class: "tag-label" }, shape.label) : null,
      score,
    );
    tag.style.background = color;
    tag.style.color = ink;
    return tag;
  }

  /** Place the labels without overlap; they have a size only after layout. */
  #place() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const shown = this.#drawn.filter(({ tag }) => !tag.hasAttribute("data-off"));
    if (!shown.length || !width) return;
    const [across, down] = [width / this.image.width, height / this.image.height];
    const sizes = shown.map(({ shape: { box }, tag }) => ({
      box: /** @type {any} */ ([box[0] * across, box[1] * down, box[2] * across, box[3] * down]),
      width: tag.offsetWidth,
      height: tag.offsetHeight,
    }));
    placeTags(sizes, { width, height }).forEach(([x, y], index) => {
      shown[index].tag.style.transform = `translate(${x}px, ${y}px)`;
    });
  }
}
