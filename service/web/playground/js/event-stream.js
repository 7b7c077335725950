/** Server-sent events of a response body; EventSource cannot send a POST. */

/** @typedef {{event: string, data: string}} ServerEvent */

/**
 * Yield the events of a body as they arrive.
 * @param {ReadableStream<any>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop() ?? "";
    yield* blocks.map(parseEvent);
  }
}

/**
 * Parse the event of a block of lines; unknown fields and comments are ignored.
 * @param {string} block
 * @returns {ServerEvent}
 */
export function parseEvent(block) {
  const event = { event: "message", data: /** @type {string[]} */ ([]) };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = line.match(/^(event|data):\s?(.*)$/) ?? [];
    if (field === "event") event.event = value;
    if (field === "data") event.data.push(value);
  }
  return { event: event.event, data: event.data.join("\n") };
}
