"""Print what the path of a request adds on top of the model's stages, for new images and for one that is cached.

    python -m loadtest.path_cost [--url URL] [--model ID] [--new N] [--cached N]

    path    total - (preprocess + encode + prefill + decode + postprocess), as the answer's timings_ms say it:
            waiting, transport between processes, hashing, hops between threads
    client  what this client waited, less the same stages: HTTP, the form and the answer's JSON on top of the path

One request at a time. It knows the REST API and no model.
"""

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

_STAGES = ("preprocess", "encode", "prefill", "decode", "postprocess")
_IMAGE_SIDE_PX = 768
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Milliseconds of one request."""

    stages_ms: dict[str, float]
    path_ms: float
    client_ms: float

    @classmethod
    def of(cls, timings_ms: dict[str, float], waited_ms: float) -> "RequestCost":
        """Return the cost of a request whose client waited `waited_ms`."""
        stages_ms = {name: timings_ms[name] for name in _STAGES}
        sum_ms = sum(stages_ms.values())
        return cls(stages_ms, timings_ms["total"] - sum_ms, waited_ms - sum_ms)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and print one table."""
    parsed = _parse(arguments)
    with httpx.Client(base_url=parsed.url, timeout=_TIMEOUT_S) as client:
        costs = {
            "cached": list(_costs(client, parsed.model, parsed.cached, is_new=False)),
            "new": list(_costs(client, parsed.model, parsed.new, is_new=True)),
        }
    print(cost_table(costs))


def cost_table(costs: dict[str, list[RequestCost]]) -> str:
    """Return path and client costs with the medians of the stages, a row for each case."""
    columns = ["path p50 / p95 ms", "client p50 / p95 ms", *(f"{name} p50" for name in _STAGES)]
    rows = [f"| image | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for case, found in costs.items():
        cells = [_percentiles([cost.path_ms for cost in found]), _percentiles([cost.client_ms for cost in found])]
        cells += [f"{np.median([cost.stages_ms[name] for cost in found]):.2f}" for name in _STAGES]
        rows.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _costs(client: httpx.Client, model: str | None, num_requests: int, is_new: bool) -> Iterator[RequestCost]:
    """Ask one after the other; raise where the vision cache was not as the case says."""
    image, expected = _image(), "miss" if is_new else "hit"
    if not is_new:
        _ask(client, model, image)
    for _ in range(num_requests):
        image = _image() if is_new else image
        start_s = time.monotonic()
        answer = _ask(client, model, image)
        waited_ms = (time.monotonic() - start_s) * 1000
        if answer["vision_cache"] != expected:
            raise RuntimeError(f"the vision cache says {answer['vision_cache']}, not {expected}")
        yield RequestCost.of(answer["timings_ms"], waited_ms)


def _ask(client: httpx.Client, model: str | None, image: bytes) -> dict[str, Any]:
    """Return the answer to a caption of few tokens."""
    form = {"task": "captioning", "max_new_tokens": "4"} | ({} if model is None else {"model": model})
    answer: dict[str, Any] = client.post("/v1/predict", data=form, files={"image": image}).raise_for_status().json()
    return answer


def _image() -> bytes:
    """Return a JPEG of random colours that nobody has seen."""
    colours = np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((_IMAGE_SIDE_PX, _IMAGE_SIDE_PX)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _percentiles(values_ms: Sequence[float]) -> str:
    p50, p95 = np.percentile(values_ms, (50, 95))
    return f"{p50:.2f} / {p95:.2f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m loadtest.path_cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="of the service; default %(default)s")
    parser.add_argument("--model", metavar="ID", help="default is the first that offers captioning")
    parser.add_argument("--new", type=int, default=20, metavar="N", help="new images; default %(default)s")
    parser.add_argument("--cached", type=int, default=200, metavar="N", help="cached requests; default %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
