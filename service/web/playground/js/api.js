/** Calls of the service's HTTP API: listings, predictions of one model, and analyses. */

import { apiKey } from "./api-key.js";
import { serverEvents } from "./event-stream.js";

/**
 * @typedef {{id: string, description: string, result: string, parameters: any, models: string[], steps?: any[]}} Task
 *     `steps`: those of a recipe
 * @typedef {{id: string, tasks: string[], [column: string]: any}} Model
 * @typedef {Record<string, string | number | boolean | (string | number)[]>} Fields  request fields by name
 * @typedef {Record<string, any>} Answer  the body of POST /v1/predict, or the first answer of an analysis with it
 */

/** An error of the service, or of the connection to it. */
export class ApiError extends Error {
  /** @param {{code: string, message: string, param?: string | null, request_id?: string}} detail */
  constructor({ code, message, param = null, request_id: requestId = "" }) {
    super(message);
    this.code = code;
    this.param = param;
    this.requestId = requestId;
  }
}

/** Return the served models, then the catalog's others with the command that serves each. @returns {Promise<Model[]>} */
export async function listCatalog() {
  return (await getJson("/v1/models?catalog=true")).data;
}

/** Return every task. @returns {Promise<Task[]>} */
export async function listTasks() {
  return (await getJson("/v1/tasks")).data;
}

/** Return the field schemas of POST /v1/predict by name. @returns {Promise<Record<string, any>>} */
export async function listFields() {
  return (await getJson("/openapi.json")).components.schemas.predictRequest.properties;
}

/**
 * Return the answer of one model.
 * @param {{blob: Blob, name: string}} image
 * @param {Fields} fields
 * @param {AbortSignal} signal
 * @param {(piece: {text: string, result?: Record<string, any>}) => void} onPiece  receives each piece of a stream; with
 *     tiles it has the result about one view
 * @returns {Promise<Answer>}
 */
export async function predict(image, fields, signal, onPiece) {
  const response = await send("/v1/predict", { method: "POST", body: formOf(image, fields), signal });
  const isStream = response.headers.get("content-type")?.startsWith("text/event-stream");
  return isStream ? streamedAnswer(response, onPiece) : response.json();
}

/**
 * Return the first answer of an analysis, with the analysis.
 * @param {{blob: Blob, name: string}} image
 * @param {Record<string, any>[]} steps
 * @param {AbortSignal} signal
 * @param {(steps: Record<string, any>[]) => void} onAnswer  receives all steps, each with its answers so far
 * @returns {Promise<Answer>}
 */
export async function analyze(image, steps, signal, onAnswer) {
  const sent = performance.now();
  const body = formOf(image, { steps: /** @type {any} */ (steps), stream: true });
  const response = await send("/v1/analyze", { method: "POST", body, signal });
  const soFar = steps.map((step) => ({ ...step, answers: /** @type {any[]} */ ([]) }));
  const analysis = await streamedAnswer(response, ({ step, ...answer }) => {
    soFar.find(({ id }) => id === step)?.answers.push(answer);
    onAnswer(soFar);
  });
  const [first] = analysis.steps[0].answers;
  if (first.error) throw new ApiError(first.error);
  return { ...first, analysis, wall_ms: performance.now() - sent };
}

/** @param {Response} response @param {(part: any) => void} onPart @returns {Promise<Answer>} */
async function streamedAnswer(response, onPart) {
  let answer = null;
  for await (const { event, data } of serverEvents(response.body)) {
    if (event === "token" || event === "answer") onPart(JSON.parse(data));
    if (event === "result") answer = JSON.parse(data);
    if (event === "error") throw new ApiError(JSON.parse(data).error);
  }
  if (answer) return answer;
  throw new ApiError({ code: "cut_off", message: "The connection closed before the answer was complete. Run again." });
}

/** @param {{blob: Blob, name: string}} image @param {Fields} fields */
function formOf(image, fields) {
  const form = new FormData();
  form.append("image", image.blob, image.name);
  for (const [name, value] of Object.entries(fields)) {
    form.append(name, Array.isArray(value) ? JSON.stringify(value) : String(value));
  }
  return form;
}

async function getJson(path) {
  return (await send(path)).json();
}

/** @param {string} path @param {RequestInit} [init] */
async function send(path, init = {}) {
  const key = apiKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : undefined;
  const response = await fetch(path, { ...init, headers }).catch(notReached);
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** @param {Error} cause @returns {never} */
function notReached(cause) {
  if (cause.name === "AbortError") throw cause;
  throw new ApiError({
    code: "not_reached",
    message: "The service cannot be reached. Check that it is running, then try again.",
  });
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const message = `HTTP ${response.status} ${response.statusText}, without a message of the service.`;
  return new ApiError(body?.error ?? { code: "no_message", message });
}
