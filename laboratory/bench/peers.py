"""The servers that ours is compared with, as an experienced user of transformers would write them:
`python -m laboratory.bench.peers litserve|fastapi CHECKPOINT PORT CORES DEVICE`.

LitServe batches dynamically over transformers' `generate`, FastAPI has a lock. Both take a form
with `image` (file), `prompt` (the exact string) and `max_new_tokens`, and answer `{"text",
"generated_tokens"}`, in float32 and greedy.

The answers of a batch equal those of single requests: prompts are padded on the tokenizer's side,
with an attention mask, and each row is cut at its own length.
"""

import io
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import litserve
import torch
import uvicorn
from fastapi import FastAPI, File, Form, Request
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor

# Smaller linear layers take longer in torch.utils.mkldnn than in MKL; measured at 63dee10.
_MIN_WEIGHTS = 500_000


@dataclass(frozen=True, slots=True)
class PromptedImage:
    """One request."""

    image: Image.Image
    prompt: str
    max_new_tokens: int

    @classmethod
    def decode(cls, image: bytes, prompt: str, max_new_tokens: int) -> "PromptedImage":
        return cls(Image.open(io.BytesIO(image)).convert("RGB"), prompt, max_new_tokens)


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """One answer."""

    text: str  # without start, end and padding tokens
    generated_tokens: int  # start and end tokens included


def use_onednn(model: nn.Module) -> None:
    """Compute large linear layers with oneDNN, as ours does; MKL is slower on some processors."""
    large = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel() >= _MIN_WEIGHTS:
            large[name] = layer
    with warnings.catch_warnings():
        # torch 2.13 and 2.15 warn, because the layers are in TorchScript
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        from torch.utils.mkldnn import to_mkldnn

        for name, layer in large.items():
            parent, _, child_name = name.rpartition(".")
            setattr(model.get_submodule(parent), child_name, to_mkldnn(layer))  # type: ignore[no-untyped-call]


class Generator:
    """A model with its processor."""

    def __init__(self, folder: Path, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self._processor = _Processor.from_pretrained(folder, local_files_only=True)
        self._device = device
        model = _Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self._model = model.to(device).eval()
        if device == "cpu":
            use_onednn(self._model)
        self._rules = self._model.generation_config

    @torch.inference_mode()
    def answer(self, requests: Sequence[PromptedImage]) -> list[GeneratedAnswer]:
        lengths = [request.max_new_tokens for request in requests]
        images = [request.image for request in requests]
        prompts = [request.prompt for request in requests]
        inputs = self._processor(images=images, text=prompts, padding=True, return_tensors="pt")
        inputs = inputs.to(self._device)
        token_ids = self._model.generate(
            **inputs, max_new_tokens=max(lengths), num_beams=1, do_sample=False
        )
        rows = token_ids[:, 1:].tolist()
        return [self._answer(row, length) for row, length in zip(rows, lengths, strict=True)]

    def _answer(self, row: Sequence[int], max_new_tokens: int) -> GeneratedAnswer:
        """Cut a row at its end token or length; a forced end token is the last of a full row."""
        num_tokens = max_new_tokens
        if self._rules.eos_token_id in row[:max_new_tokens]:
            num_tokens = row.index(self._rules.eos_token_id) + 1
        is_full = num_tokens == max_new_tokens and self._rules.forced_eos_token_id is not None
        rules = self._rules
        framing = {rules.eos_token_id, rules.forced_bos_token_id, rules.pad_token_id}
        written = [token_id for token_id in row[: num_tokens - is_full] if token_id not in framing]
        text: str = self._processor.tokenizer.decode(written, clean_up_tokenization_spaces=False)
        return GeneratedAnswer(text, num_tokens)


_MAX_BATCH_SIZE = 4
_BATCH_TIMEOUT_S = 0.01


class GenerateApi(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Answers a batch of requests in a worker process."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_BATCH_TIMEOUT_S)
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:
        self._generator = Generator(self._checkpoint, num_threads=1, device=device)

    def decode_request(self, request: Request) -> PromptedImage:
        """Read the form that LitServe has parsed; it requires the annotation `Request`."""
        form: Any = request
        return PromptedImage.decode(
            form["image"].file.read(), form["prompt"], int(form["max_new_tokens"])
        )

    def predict(self, requests: Sequence[PromptedImage]) -> list[GeneratedAnswer]:
        return self._generator.answer(requests)

    def encode_response(self, output: GeneratedAnswer) -> dict[str, Any]:
        return asdict(output)


def make_app(generator: Generator) -> FastAPI:
    """Return the application; its plain functions wait for the lock in FastAPI's threads."""
    app = FastAPI()
    lock = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(
        image: Annotated[bytes, File()],
        prompt: Annotated[str, Form()],
        max_new_tokens: Annotated[int, Form()],
    ) -> GeneratedAnswer:
        request = PromptedImage.decode(image, prompt, max_new_tokens)
        with lock:
            return generator.answer([request])[0]

    return app


def main() -> None:
    """Serve one peer, FastAPI with a thread for each core, or LitServe with a worker.

    On a GPU, LitServe has one worker.
    """
    peer, checkpoint, port, num_cores, device = sys.argv[1:]
    if peer == "fastapi":
        app = make_app(Generator(Path(checkpoint), int(num_cores), device))
        uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
        return
    # LitServe 0.2.19 starts an MCP server where `mcp` is installed, but imports its parts only
    # where `fastmcp` is.
    litserve.server._MCP_AVAILABLE = False
    server = litserve.LitServer(
        GenerateApi(Path(checkpoint)),
        accelerator=device,
        workers_per_device=int(num_cores) if device == "cpu" else 1,
        timeout=False,
    )
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
