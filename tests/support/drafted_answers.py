"""Constrained questions about the scenes of the evaluation, answered with drafts and without."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from export.scenes import render_scene
from laboratory.evaluation import evaluation_scene
from laboratory.questions import question_prompts, questions
from runners.decoder.answers import to_request
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.options import SchedulerLimits
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.table import TASKS, parse_parameters
from wire.runner_messages import SequenceSpec

MAX_PREFILL_TOKENS = 4096
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt about an image, and its request."""

    prompt: str
    image: Image.Image
    request: SequenceRequest


def asked(
    decoder: Decoder,
    encoder: VisionEncoder,
    entry: CatalogEntry,
    task_ids: Sequence[str],
    scenes: range,
) -> Iterator[Asked]:
    """Yield the prompts of all questions of `task_ids` about scenes of the evaluation."""
    size_wh = (entry.resolution, entry.resolution)
    for scene in map(evaluation_scene, scenes):
        image = render_scene(scene, entry.resolution)
        features = encoder.encode(np.asarray(image)[None])[0]
        for question in questions(scene):
            if question.task not in task_ids:
                continue
            scaled = question.scaled(size_wh)
            parameters = parse_parameters(TASKS[scaled.task], scaled.parameters)
            grammar = FAMILIES[entry.family].answer_grammar(entry, scaled.task, parameters)
            for prompt in question_prompts(entry, scaled, size_wh):
                segments = [(segment.text, segment.is_control) for segment in prompt.segments]
                spec = SequenceSpec(
                    segments=segments, num_beams=1, grammar=grammar, timeout_s=TIMEOUT_S
                )
                text = "".join(text for text, _ in segments)
                yield Asked(text, image, to_request(decoder, features, spec))


def generate(
    decoder: Decoder, requests: Sequence[SequenceRequest], num_clients: int
) -> list[GeneratedSequence]:
    """Generate the answers to `requests`, `num_clients` at a time."""
    limits = SchedulerLimits(num_clients, num_clients, MAX_PREFILL_TOKENS)
    scheduler = Scheduler(decoder, "drafts", limits)

    def answer(request: SequenceRequest) -> GeneratedSequence:
        return scheduler.submit([request])[0].result(TIMEOUT_S).sequence

    scheduler.start()
    try:
        with ThreadPoolExecutor(num_clients) as clients:
            return list(clients.map(answer, requests))
    finally:
        scheduler.stop()


def generate_without_drafts(
    decoder: Decoder, requests: Sequence[SequenceRequest], num_clients: int
) -> list[GeneratedSequence]:
    """Like `generate`, one token of each sequence at a time."""
    usual = decoder.can_draft
    decoder.can_draft = False
    try:
        return generate(decoder, requests, num_clients)
    finally:
        decoder.can_draft = usual
