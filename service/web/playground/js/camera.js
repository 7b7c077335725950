/** A photo from the camera, where the browser has one and the person allows it. */

import { chosenImage } from "./chosen-image.js";
import { byId } from "./dom.js";

/**
 * Return a photo; null where the person closed the camera, an Error where there is none.
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
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return chosenImage(blob, "photo.jpg");
}

/** @param {Error} cause @returns {never} */
function refused(cause) {
  throw new Error(`The camera cannot be used: ${cause.message}`);
}
