"""The service's answers, the same for all interfaces, and their check.

An answer is wrong if it is about another task, model or image size, if its result is of another
kind, or if its text differs from an earlier answer to the same question about the same image. It is
not compared with a ground truth.
"""

from dataclasses import dataclass, field

from loadtest.load.traffic.questions import COMPARED, Question

OK = "ok"
WRONG_ANSWER = "wrong_answer"
CONNECTION_FAILED = "connection_failed"
TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One model's answer."""

    model: str
    task: str
    result_keys: tuple[str, ...]
    size_wh: tuple[int, int]
    raw_text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request: answers, or the code of its error."""

    status: str  # OK, the service's code, CONNECTION_FAILED or TIMED_OUT
    answers: tuple[ModelReply, ...] = ()
    first_token_s: float | None = None  # streams only; time.monotonic()


@dataclass(slots=True)
class Checker:
    """Checks replies; keeps the texts of answers about repeated images."""

    answers_repeat: bool
    _texts: dict[tuple[object, ...], str] = field(default_factory=dict)

    def status(self, question: Question, reply: Reply) -> str:
        """Return the status of a reply; WRONG_ANSWER for answers that cannot be right."""
        if reply.status != OK:
            return reply.status
        is_complete = bool(reply.answers) and (
            question.model == COMPARED or len(reply.answers) == 1
        )
        is_right = is_complete and all(
            self._can_be_right(question, answer) for answer in reply.answers
        )
        return OK if is_right else WRONG_ANSWER

    def _can_be_right(self, question: Question, answer: ModelReply) -> bool:
        fits = (
            answer.task == question.task
            and question.model in (COMPARED, answer.model)
            and answer.result_keys == (question.result_key,)
            and answer.size_wh == question.image.size_wh
        )
        if not fits or not self.answers_repeat or question.repeat_key is None:
            return fits
        key = (answer.model, *question.repeat_key)
        return self._texts.setdefault(key, answer.raw_text) == answer.raw_text
