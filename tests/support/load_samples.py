"""Questions, answers and samples of a load test that was not run."""

from loadtest.load.samples import Sample
from loadtest.load.senders.replies import ModelReply
from loadtest.load.traffic.questions import Question
from loadtest.load.traffic.scenes import SentImage
from loadtest.load.traffic.traffic_mix import Api, Slo

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
    """Return a sample, by default a good one."""
    return Sample(api, task, model, due_s, 0.001, latency_s, first_token_s, status)


def question(model: str = "florence-2-mini", image_number: int | None = 1) -> Question:
    """Return a question; its image is repeated if it has a number."""
    return Question(
        "rest", "ocr", model, {}, SentImage(b"pixels", (64, 48), image_number), 5.0, "text"
    )


def model_reply(
    model: str = "florence-2-mini",
    task: str = "ocr",
    result_key: str = "text",
    size_wh: tuple[int, int] = (64, 48),
    raw_text: str = "YK",
) -> ModelReply:
    """Return an answer to `question()`, by default the right one."""
    return ModelReply(model, task, (result_key,), size_wh, raw_text)
