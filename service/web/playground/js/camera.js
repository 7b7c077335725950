/** A photo from the camera, with the user's permission. */

import { chosenImage, drawn, encoded } from "./chosen-image.js";
import { byId } from "./dom.js";

/**
 * Return a photo, or null if the dialog was cancelled; throw an Error without camera or permission.
 * @returns {Promise<import("./chosen-image.js").ChosenImage | null>}
 */
export async function takePhoto() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }).catch(refused);
  try {
    const video = byId("camera-video");
    video.srcObject = stream;
    await video.play();
    return (await isTaken()) ? await photoOf(video) : null;
  } finally {
    stream.getTracks().forEach((track) => track.stop());
  }
}

/** @returns {Promise<boolean>} */
function isTaken() {
  const dialog = byId("camera-dialog");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "take"), { once: true });
  });
}

/** @param {HTMLVideoElement} video */
async function photoOf(video) {
  const blob = await encoded(drawn(video, video.videoWidth, video.videoHeight), "image/jpeg");
  return chosenImage(/** @type {Blob} */ (blob), "photo.jpg");
}

/** @param {Error} cause @returns {never} */
function refused(cause) {
  throw new Error(`Cannot open the camera: ${cause.message}`);
}
