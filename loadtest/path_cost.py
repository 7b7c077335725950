"""The time that the path of a request adds to the stages of the model, for new and for cached
images.

    python -m loadtest.path_cost [--url URL] [--model ID] [--new N] [--cached N]

    path    total - (preprocess + encode + prefill + decode + postprocess), from the answer's
            timings_ms:
            queues, transport between processes, hashing, hops between threads
    client  latency of this client minus the same stages: the path, HTTP, the form and the answer's
            JSON

One request at a time. It knows the REST API and no model.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.figures import percentile, table
from loadtest.soak_traffic import new_image

_STAGES = ("preprocess", "encode", "prefill", "decode", "postprocess")
_IMAGE_SIDE_PX = 768
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Milliseconds of one request."""

    stages_ms: Mapping[str, float]
    path_ms: float
    client_ms: float

    @classmethod
    def of(cls, timings_ms: Mapping[str, float], latency_ms: float) -> "RequestCost":
        stages_ms = {name: timings_ms[name] for name in _STAGES}
        sum_ms = sum(stages_ms.values())
        return cls(stages_ms, timings_ms["total"] - sum_ms, latency_ms - sum_ms)


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = _parse(arguments)
    with httpx.Client(base_url=parsed.url, timeout=_TIMEOUT_S) as client:
        costs = {
            "cached": list(_costs(client, parsed.model, parsed.cached, is_new=False)),
            "new": list(_costs(client, parsed.model, parsed.new, is_new=True)),
        }
    print(cost_table(costs))


def cost_table(costs: Mapping[str, Sequence[RequestCost]]) -> str:
    """Return the costs of path and client and the medians of the stages, a row for each case."""
    header = [
        "image",
        "path p50 / p95 ms",
        "client p50 / p95 ms",
        *(f"{name} p50" for name in _STAGES),
    ]
    rows = []
    for case, found in costs.items():
        path = _percentiles([cost.path_ms for cost in found])
        row = [case, path, _percentiles([cost.client_ms for cost in found])]
        for name in _STAGES:
            row.append(f"{statistics.median(cost.stages_ms[name] for cost in found):.2f}")
        rows.append(row)
    return table(header, rows)


def _costs(
    client: httpx.Client, model: str | None, num_requests: int, is_new: bool
) -> Iterator[RequestCost]:
    """Send one request after the other.

    Raise `RuntimeError` if the vision cache contradicts `is_new`.
    """
    image = new_image(_IMAGE_SIDE_PX)
    expected = "miss" if is_new else "hit"
    if not is_new:
        _caption(client, model, image)
    for _ in range(num_requests):
        image = new_image(_IMAGE_SIDE_PX) if is_new else image
        start_s = time.monotonic()
        answer = _caption(client, model, image)
        latency_ms = (time.monotonic() - start_s) * 1000
        if answer["vision_cache"] != expected:
            raise RuntimeError(f"vision_cache is {answer['vision_cache']}, expected {expected}")
        yield RequestCost.of(answer["timings_ms"], latency_ms)


def _caption(client: httpx.Client, model: str | None, image: bytes) -> dict[str, Any]:
    """Return the answer to a caption of few tokens."""
    form = {"task": "captioning", "max_new_tokens": "4"} | (
        {} if model is None else {"model": model}
    )
    answer: dict[str, Any] = (
        client.post("/v1/predict", data=form, files={"image": image}).raise_for_status().json()
    )
    return answer


def _percentiles(values_ms: Sequence[float]) -> str:
    return " / ".join(f"{percentile(values_ms, percent):.2f}" for percent in (50, 95))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m loadtest.path_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:3000", help="of the service; default %(default)s"
    )
    parser.add_argument("--model", metavar="ID", help="default: the first that offers captioning")
    parser.add_argument(
        "--new", type=int, default=20, metavar="N", help="with new images; default %(default)s"
    )
    parser.add_argument(
        "--cached",
        type=int,
        default=200,
        metavar="N",
        help="with a cached image; default %(default)s",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
