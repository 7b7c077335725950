"""Questions, answers and samples of a load test that nobody ran."""

from loadtest.load.questions import Question
from loadtest.load.replies import ModelReply
from loadtest.load.samples import Sample
from loadtest.load.scenes import SentImage
from loadtest.load.traffic_mix import Api, Slo

SLOS_MS = {"ocr": Slo(400, 300), "captioning": Slo(600, 300)}


def sample(
    api: Api = "rest",
    task: str = "ocr",
    model: str = "florence-2-mini",
    due_s: float = 0.0,
    latency_s: float = 0.1,
    first_token_s: float | None = None,
    status: str = "ok",
) -> Sample:
    """A sample, good unless told otherwise."""
    return Sample(api, task, model, due_s, 0.001, latency_s, first_token_s, status)


def question(model: str = "florence-2-mini", image_number: int | None = 1) -> Question:
    """A question about an image that comes again, or not."""
    return Question("rest", "ocr", model, {}, SentImage(b"pixels", (64, 48), image_number), 5.0, "text")


def model_reply(
    model: str = "florence-2-mini",
    task: str = "ocr",
    result_key: str = "text",
    size_wh: tuple[int, int] = (64, 48),
    raw_text: str = "YK",
) -> ModelReply:
    """The right answer to that question, unless told otherwise."""
    return ModelReply(model, task, (result_key,), size_wh, raw_text)
