"""The page in a real browser: what a person does there, and what can be read there."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    FilePayload,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests.support.playground_questions import SAMPLE

# the shell takes a third less CPU than the whole browser in headless mode
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
TIMEOUT_MS = 60_000  # the machine is shared
MISSING = (
    "no chromium here: the page at /playground is NOT tested"
    " (apt-get install chromium-headless-shell)"
)
_ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]

_DRAWN_SHAPES = """panel => {
  const image = panel.querySelector(".canvas img");
  const frame = image.getBoundingClientRect();
  const scale = image.naturalWidth / frame.width;
  const pixel = (screen) => Math.round(screen * scale * 1000) / 1000;
  const shapes = [...panel.querySelectorAll(".shape")];
  const shown = shapes.filter(shape => shape.getClientRects().length);
  shown.sort((a, b) => a.dataset.index - b.dataset.index);
  return shown.map(shape => {
    const path = shape.querySelector(".line");
    const onScreen = path.getScreenCTM();
    const points = [...path.getAttribute("d").matchAll(/[ML]([^ ]+) ([^MLZ]+)/g)];
    const numbers = points.map(([, x, y]) => new DOMPoint(Number(x), Number(y)));
    const corners = numbers.map(point => point.matrixTransform(onScreen));
    return {
      label: shape.dataset.label,
      points: corners.map(({ x, y }) => [pixel(x - frame.left), pixel(y - frame.top)]),
    };
  });
}"""

_GIVE = """([kind, base64]) => {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass  # no slots: Playwright sets attributes on a listener
class Witness:
    """Notes failed scripts, breaches of the page's policy, and requests to other hosts."""

    complaints: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(page, request))

    def _console(self, message: ConsoleMessage) -> None:
        is_failed_load = message.text.startswith("Failed to load")
        if message.type == "error" and not (is_failed_load and "/v1/" in message.location["url"]):
            self.complaints.append(message.text)

    def _request(self, page: Page, request: Request) -> None:
        url = urlsplit(request.url)
        is_other_host = page.url != "about:blank" and url.netloc != urlsplit(page.url).netloc
        if url.scheme in ("http", "https") and is_other_host:
            self.complaints.append(f"requested {request.url}")


@dataclass(frozen=True, slots=True)
class Playground:
    page: Page
    url: str

    def open(self, **link: str) -> None:
        """Open the page, by a link if fields are given; wait until it is usable or has answered."""
        # or only what stands after # would change, and no page be loaded
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/playground" + (f"#{urlencode(link)}" if link else ""))
        expect(self.page.locator("body[data-loading]")).to_have_count(0)
        if "task" in link:
            self.wait_for_answers()
        else:
            expect(self.page.locator("#preview img")).to_be_visible()

    def begin(self, task: str) -> None:
        self.page.goto(f"{self.url}/playground#task={task}&sample={SAMPLE}")

    def give(self, way: str, data: bytes) -> None:
        """Paste an image, or drop it on the page, and wait until it is shown."""
        self.page.evaluate(_GIVE, [way, base64.b64encode(data).decode()])
        expect(self.page.locator("#image-name")).to_contain_text(f"{way}.png")

    def choose_file(self, name: str, data: bytes, size: str) -> None:
        file: FilePayload = {"name": name, "mimeType": "image/png", "buffer": data}
        self.page.locator("#file").set_input_files(file)
        expect(self.page.locator("#image-name")).to_have_text(f"{name} · {size}")

    def choose_task(self, task: str) -> None:
        self.page.locator(f"label:has(#task-{task})").click()

    def run(self) -> None:
        self.page.locator("#run").click()
        self.wait_for_answers()

    def wait_for_answers(self) -> None:
        """Wait until there are panels and every model has answered."""
        expect(self.page.locator(".panel").first).to_be_visible()
        expect(self.page.locator("#answers")).to_have_attribute("aria-busy", "false")

    def panel(self, model: str) -> Locator:
        return self.page.locator(f".panel[data-model='{model}']")

    def answer_text(self, model: str) -> Locator:
        return self.panel(model).locator(".answer-text")

    def shapes(self, model: str) -> list[dict[str, Any]]:
        """Return label and corners of visible shapes, drawn on screen, in pixels of the image."""
        shapes: list[dict[str, Any]] = self.panel(model).evaluate(_DRAWN_SHAPES)
        return shapes

    def answer(self, model: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.copied(model, "JSON"))
        return answer

    def copied(self, model: str, form: str) -> str:
        button = self.panel(model).locator(f"[data-copy={form}]")
        button.click()
        expect(button).to_have_text("Copied")
        text: str = self.page.evaluate("navigator.clipboard.readText()")
        return text

    def module(self, name: str, expression: str) -> Any:
        """Return the value of an expression in which `m` is a module of the page."""
        return self.page.evaluate(f"import('/playground/js/{name}.js').then(m => {expression})")
