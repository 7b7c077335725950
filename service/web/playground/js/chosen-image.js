/** The chosen image. It leaves the browser only as part of requests. */

const THUMBNAIL_PX = 160;

/**
 * @typedef {object} ChosenImage
 * @property {Blob} blob
 * @property {string} name  of the file
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
 * Return the image of a file; throw an Error with a message for the user.
 * @param {Blob} blob
 * @param {string} name
 * @param {Sample | null} [sample]
 * @returns {Promise<ChosenImage>}
 */
export async function chosenImage(blob, name, sample = null) {
  const url = URL.createObjectURL(blob);
  const picture = new Image();
  picture.src = url;
  try {
    await picture.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${name} is not an image that this browser can show. Choose a JPEG, PNG or WebP file.`);
  }
  const { naturalWidth: width, naturalHeight: height } = picture;
  return { blob, name, url, width, height, thumbnail: thumbnailOf(picture), sample };
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

/** @param {HTMLImageElement} picture */
function thumbnailOf(picture) {
  const scale = Math.min(1, THUMBNAIL_PX / Math.max(picture.naturalWidth, picture.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.8);
}
