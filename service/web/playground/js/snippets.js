/** A request as a curl command or a Python program. */

/**
 * @typedef {Record<string, any>} Fields
 * @typedef {{url: string, imageName: string, fields: Fields, needsKey: boolean}} Request
 */

/**
 * Return a curl command for a POSIX shell.
 *
 * `--form-string` instead of `-F`, which reads a value that begins with `@` or `<` as a file.
 * @param {Request} request
 */
export function curlCommand({ url, imageName, fields, needsKey }) {
  const words = Object.entries(fields).map(([name, value]) => `--form-string ${quoted(`${name}=${formText(value)}`)}`);
  if (needsKey) words.unshift('-H "Authorization: Bearer $DIPTYCH_API_KEY"');
  return [
    `curl -s ${quoted(url)}`,
    `-F ${quoted(`image=@"${imageName.replace(/["\\]/g, "\\$&")}"`)}`,
    ...words,
  ].join(" \\\n  ");
}

/**
 * Return a Python program.
 * @param {Request} request
 */
export function pythonProgram({ url, imageName, fields, needsKey }) {
  const data = Object.entries(fields).map(([name, value]) => `    ${literal(name)}: ${literal(formText(value))},`);
  const headers = needsKey ? ', headers={"Authorization": f"Bearer {os.environ[\'DIPTYCH_API_KEY\']}"}' : "";
  return [
    ...(needsKey ? ["import os", ""] : []),
    "import httpx",
    "",
    "fields = {",
    ...data,
    "}",
    `with open(${literal(imageName)}, "rb") as image:`,
    `    response = httpx.post(${literal(url)}, data=fields, files={"image": image}${headers}, timeout=60)`,
    "response.raise_for_status()",
    "print(response.text)",
  ].join("\n");
}

/** @param {Fields[string]} value */
function formText(value) {
  return Array.isArray(value) ? JSON.stringify(value) : String(value);
}

/** Quote a word for a POSIX shell. @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Return a Python string literal, which a JSON string is. @param {string} text */
function literal(text) {
  return JSON.stringify(text);
}
