"""Questions asked of an exported model, and its answers, by the code that serves them: the tasks'
prompts and parsers, the runners' decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul

from torch import Tensor

from runners.decoder.protocol import Decoder
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.model_worker import AnswerText, to_request
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES, RUNNER_FAMILIES
from tasks.paligemma import MaskDecoder
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.prompts import Prompt, PromptSegment
from tasks.results import Result
from tasks.table import TASKS, TaskParameters, parse_parameters
from wire.runner_messages import SequenceSpec

_NO_TIMEOUT_S = 1e9
_NO_PARAMETERS = TaskParameters()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt of a task, as the service sends it; one that is not a task's is sent as it is."""

    entry: CatalogEntry
    prompt: Prompt
    task_id: str | None = None
    parameters: TaskParameters = _NO_PARAMETERS

    @classmethod
    def of_task(
        cls,
        entry: CatalogEntry,
        task_id: str,
        values: Mapping[str, object],
        image_size_wh: tuple[int, int],
    ) -> list["Question"]:
        """Return the prompts of a request; raise `TaskError` if the model does not offer it."""
        parameters = parse_parameters(TASKS[task_id], values)
        questions = []
        family = FAMILIES[entry.family]
        for prompt in family.task_prompts(entry, task_id, parameters, image_size_wh):
            questions.append(cls(entry, prompt, task_id, parameters))
        return questions

    @classmethod
    def of_text(cls, entry: CatalogEntry, text: str, image_size_wh: tuple[int, int]) -> "Question":
        """Return a published prompt; raise `TaskError` if the model offers no such prompt."""
        request = FAMILIES[entry.family].read_prompt(entry, text)
        if request is None:
            return cls(entry, (PromptSegment(text),))
        values = dict(request.values)
        if request.region_shares is not None:
            values["region"] = list(map(mul, request.region_shares, image_size_wh * 2))
        questions = cls.of_task(entry, request.task_id, values, image_size_wh)
        return questions[0] if len(questions) == 1 else cls(entry, (PromptSegment(text),))

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.prompt)

    @property
    def segments(self) -> list[tuple[str, bool]]:
        return [(segment.text, segment.is_control) for segment in self.prompt]

    @property
    def grammar(self) -> str | None:
        if self.task_id is None:
            return None
        language = RUNNER_FAMILIES[self.entry.family]
        return language.answer_grammar(self.entry, self.task_id, self.parameters)

    def request(
        self, decoder: Decoder, features: Tensor, max_new_tokens: int, num_beams: int | None = None
    ) -> SequenceRequest:
        """Return the question about an image; raise `SequenceError`."""
        spec = SequenceSpec(
            segments=self.segments,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            grammar=self.grammar,
            timeout_s=_NO_TIMEOUT_S,
        )
        return to_request(decoder, features, spec)

    def result(
        self,
        decoder: Decoder,
        sequence: GeneratedSequence,
        image_size_wh: tuple[int, int],
        mask_decoder: MaskDecoder | None,
    ) -> Result:
        assert self.task_id is not None
        answer = AnswerText(decoder)
        answer.push(sequence.token_ids)
        # as one token: scores are not compared
        generated = GeneratedText(answer.text, (len(answer.text),), (0.0,), sequence.finish_reason)
        task = AnsweredTask(
            self.entry, self.task_id, self.parameters, image_size_wh, mask_decoder=mask_decoder
        )
        return FAMILIES[self.entry.family].parse_answer(task, [generated])
