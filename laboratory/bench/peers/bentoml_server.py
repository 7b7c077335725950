r"""BentoML's adaptive batching over transformers' `generate`, as its documentation has it for
several parameters.

    python -m bentoml serve laboratory.bench.peers.bentoml_server:Vision \
        --arg checkpoint=FOLDER --arg threads=1 …

A batchable API takes one parameter: a wrapper service accepts the form and calls the service of the
model, which runs in processes of its own (docs.bentoml.com, "Adaptive batching", "Handle multiple
parameters").
"""

from pathlib import Path

import bentoml
from pydantic import BaseModel

from laboratory.bench.peers.generation import Generator, PromptedImage

# a batch that exceeds it is refused; the time limit of the benchmark is that of the round
_TIMEOUT_S = 900
# BentoML 1.4.40 closes the wrapper's connections after 100 requests and after 300 s, with those in
# flight on them (_bentoml_impl/client/proxy2.py, SessionManager), and every caller gets a 500.
_CONNECTION = {"max_requests": 1_000_000_000, "max_age": 86_400.0}


class Arguments(BaseModel):
    """The values of `--arg`."""

    checkpoint: Path
    threads: int  # per worker
    workers: int = 1
    max_batch_size: int = 16


class Question(BaseModel):
    """One request."""

    image: Path
    prompt: str
    max_new_tokens: int


class Answer(BaseModel):
    """Its answer."""

    text: str
    generated_tokens: int


_arguments = bentoml.use_arguments(Arguments)


@bentoml.service(
    workers=_arguments.workers, traffic={"timeout": _TIMEOUT_S}, runner_connection=_CONNECTION
)
class Model:
    """Answers batches of questions."""

    def __init__(self) -> None:
        self._generator = Generator(_arguments.checkpoint, _arguments.threads)

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True, max_batch_size=_arguments.max_batch_size, max_latency_ms=_TIMEOUT_S * 1000
    )
    def generate(self, questions: list[Question]) -> list[Answer]:
        requests = [
            PromptedImage.decode(one.image.read_bytes(), one.prompt, one.max_new_tokens)
            for one in questions
        ]
        answers = self._generator.answer(requests)
        return [Answer(text=one.text, generated_tokens=one.generated_tokens) for one in answers]


@bentoml.service(traffic={"timeout": _TIMEOUT_S})
class Vision:
    """Accepts the form of the benchmark."""

    model = bentoml.depends(Model)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def predict(self, image: Path, prompt: str, max_new_tokens: int) -> Answer:
        question = Question(image=image, prompt=prompt, max_new_tokens=max_new_tokens)
        answers: list[Answer] = await self.model.to_async.generate([question])
        return answers[0]
