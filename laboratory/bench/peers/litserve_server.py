"""LitServe with dynamic batching over transformers' `generate`: `python -m
laboratory.bench.peers.litserve_server`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from laboratory.bench.peers.generation import GeneratedAnswer, Generator, PromptedImage

_MAX_BATCH_SIZE = 4
_BATCH_TIMEOUT_S = 0.01


class GenerateApi(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Answers a batch of requests in a worker process."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_BATCH_TIMEOUT_S)
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's signature
        self._generator = Generator(self._checkpoint, num_threads=1)

    def decode_request(self, request: Request) -> PromptedImage:
        """Read the form that LitServe has parsed; it requires the annotation `Request`."""
        form: Any = request
        return PromptedImage.decode(
            form["image"].file.read(), form["prompt"], int(form["max_new_tokens"])
        )

    def batch(self, inputs: list[PromptedImage]) -> list[PromptedImage]:
        """Return the requests unchanged: the processor pads and stacks them."""
        return inputs

    def predict(self, requests: Sequence[PromptedImage]) -> list[GeneratedAnswer]:
        return self._generator.answer(requests)

    def unbatch(self, output: list[GeneratedAnswer]) -> list[GeneratedAnswer]:
        return output

    def encode_response(self, output: GeneratedAnswer) -> dict[str, Any]:
        return asdict(output)


def main() -> None:
    summary = (__doc__ or "").partition("\n")[0]
    name = "python -m laboratory.bench.peers.litserve_server"
    parser = argparse.ArgumentParser(name, description=summary)
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--port", type=int, required=True)
    add("--workers", type=int, default=1, help="of one thread each")
    parsed = parser.parse_args()
    # LitServe 0.2.19 starts an MCP server where `mcp` is installed, but imports its parts only
    # where `fastmcp` is.
    litserve.server._MCP_AVAILABLE = False
    api = GenerateApi(parsed.checkpoint)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=parsed.workers, timeout=False
    )
    server.run(host="127.0.0.1", port=parsed.port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
