"""FastAPI with transformers' `generate` behind a lock: `python -m
laboratory.bench.peers.fastapi_server`.
"""

import argparse
import threading
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form

from laboratory.bench.peers.generation import GeneratedAnswer, Generator, PromptedImage


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
    name = "python -m laboratory.bench.peers.fastapi_server"
    parser = argparse.ArgumentParser(name, description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parsed = parser.parse_args()
    app = make_app(Generator(parsed.checkpoint, parsed.threads))
    uvicorn.run(app, host="127.0.0.1", port=parsed.port, log_level="warning")


if __name__ == "__main__":
    main()
