/** The chosen image, as a file that the service reads. It leaves the browser only as part of requests. */

const THUMBNAIL_PX = 160;
/** Limits of a service by default; a request has other fields too. */
const MAX_PIXELS = 50_000_000;
const MAX_SIDE_PX = 20_000;
const MAX_BYTES = 19_900_000;
/** First bytes of JPEG, PNG and WebP. */
const READ_BY_SERVICE = /^(\xff\xd8|\x89PNG|RIFF....WEBP)/s;

/**
 * @typedef {object} ChosenImage
 * @property {Blob} blob
 * @property {string} name  of the file
 * @property {string} note  which file it replaces, if the service does not read the chosen one
 * @property {string} url  of the blob
 * @property {number} width  upright, in pixels
 * @property {number} height
 * @property {string} thumbnail  a data: URL
 * @property {Sample | null} sample
 *
 * @typedef {object} Sample  an image of the page
 * @property {string} id
 * @property {string} file
 * @property {string} description
 * @property {boolean} [is_photograph]
 * @property {Record<string, any>} examples  a value for each parameter, by its name
 */

/**
 * Return the image of a file, converted or made smaller if needed; throw an Error with a message for the user.
 * @param {Blob} blob
 * @param {string} name
 * @param {Sample | null} [sample]
 * @returns {Promise<ChosenImage>}
 */
export async function chosenImage(blob, name, sample = null) {
  const picture = await decoded(blob, name);
  const { src: url, naturalWidth: width, naturalHeight: height } = picture;
  const head = new Uint8Array(await blob.slice(0, 12).arrayBuffer());
  const isRead = READ_BY_SERVICE.test(String.fromCharCode(...head));
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)), MAX_SIDE_PX / Math.max(width, height));
  const isTooLarge = scale < 1 || blob.size > MAX_BYTES;
  if (isTooLarge || !isRead) {
    const file = await readableFile(picture, scale, isTooLarge ? "image/jpeg" : "image/png");
    URL.revokeObjectURL(url);
    const image = await chosenImage(file, name.replace(/(\.\w+)?$/, file.type.replace("image/", ".")));
    const size = `${width} × ${height} and ${(blob.size / 1e6).toFixed(1)} MB`;
    const sent = `${image.name}, ${image.width} × ${image.height}, is sent`;
    const note = isTooLarge ? `${size} is too large: ${sent}, and boxes are in its pixels.` : `${name} is converted: ${sent}.`;
    return { ...image, note };
  }
  const shrinking = Math.min(1, THUMBNAIL_PX / Math.max(width, height));
  const thumbnail = drawn(picture, width * shrinking, height * shrinking).toDataURL("image/jpeg", 0.8);
  return { blob, name, note: "", url, width, height, thumbnail, sample };
}

/** @param {Blob} blob @param {string} name */
async function decoded(blob, name) {
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
  } catch {
    URL.revokeObjectURL(picture.src);
    throw new Error(`${name} is not an image that this browser can show. Choose a JPEG, PNG or WebP file.`);
  }
  return picture;
}

/**
 * Return the pixels as a file of this type, or as the largest JPEG that the service and the browser allow.
 * @param {HTMLImageElement} picture
 * @param {number} scale
 * @param {string} type
 * @returns {Promise<Blob>}
 */
async function readableFile(picture, scale, type) {
  const canvas = drawn(picture, picture.naturalWidth * scale, picture.naturalHeight * scale);
  const isDrawn = canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0; // a canvas too large stays empty
  const file = isDrawn ? await encoded(canvas, type) : null;
  if (file && file.size <= MAX_BYTES) return file;
  return readableFile(picture, type === "image/jpeg" ? scale * 0.8 : scale, "image/jpeg");
}

/** Return a canvas with an image or a frame over white, as the service sees it. */
export function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.floor(width)), Math.max(1, Math.floor(height))];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas @param {string} type @returns {Promise<Blob | null>} */
export function encoded(canvas, type) {
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
}

/**
 * Return the samples of the page.
 * @returns {Promise<Sample[]>}
 */
export async function listSamples() {
  return (await fetch("/playground/samples/samples.json")).json();
}

/**
 * Return the URL of a sample.
 * @param {Sample} sample
 */
export function sampleUrl(sample) {
  return `/playground/samples/${sample.file}`;
}

/**
 * Return the image of a sample.
 * @param {Sample} sample
 */
export async function sampleImage(sample) {
  const response = await fetch(sampleUrl(sample));
  if (!response.ok) throw new Error(`Cannot load the sample ${sample.file}.`);
  return chosenImage(await response.blob(), sample.file, sample);
}
