"""LitServe with dynamic batching over transformers' `generate`: `python -m
laboratory.bench.peers.litserve_server`.

With `--encoder-graph`, ONNX Runtime encodes the images.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from laboratory.bench.peers.generation import GeneratedAnswer, Generator, PromptedImage


class GenerateApi(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Answers a batch of requests in a worker process."""

    def __init__(
        self, load: Callable[[], Generator], max_batch_size: int, batch_timeout_s: float
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout_s)
        self._load = load

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's signature
        self._generator = self._load()

    def decode_request(self, request: Request) -> PromptedImage:
        """Read the form that LitServe has parsed; it requires the annotation `Request`."""
        form: Any = request
        return PromptedImage.decode(
            form["image"].file.read(), form["prompt"], int(form["max_new_tokens"])
        )

    def batch(self, inputs: list[PromptedImage]) -> list[PromptedImage]:
        """Return the requests unchanged: the processor pads and stacks them."""
        return inputs

    def predict(self, requests: Sequence[PromptedImage] | PromptedImage) -> list[GeneratedAnswer]:
        """Answer a batch, or a single request if batching is off."""
        return self._generator.answer(
            [requests] if isinstance(requests, PromptedImage) else requests
        )

    def unbatch(self, output: list[GeneratedAnswer]) -> list[GeneratedAnswer]:
        return output

    def encode_response(self, output: GeneratedAnswer | list[GeneratedAnswer]) -> dict[str, Any]:
        return asdict(output[0] if isinstance(output, list) else output)


def main() -> None:
    summary = (__doc__ or "").partition("\n")[0]
    name = "python -m laboratory.bench.peers.litserve_server"
    parser = argparse.ArgumentParser(name, description=summary)
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--encoder-graph", type=Path)
    add("--port", type=int, required=True)
    add("--threads", type=int, required=True, help="of each worker")
    add("--workers", type=int, default=1)
    add("--max-batch-size", type=int, default=1)
    add("--batch-timeout-s", type=float, default=0.0)
    parsed = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*batch and unbatch methods.*")  # if batching is off
    # LitServe 0.2.19 starts an MCP server where `mcp` is installed, but imports its parts only
    # where `fastmcp` is.
    litserve.server._MCP_AVAILABLE = False
    load = partial(Generator, parsed.checkpoint, parsed.threads, parsed.encoder_graph)
    api = GenerateApi(load, parsed.max_batch_size, parsed.batch_timeout_s)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=parsed.workers, timeout=False
    )
    server.run(host="127.0.0.1", port=parsed.port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
