"""The gain of drafts: `python -m export.bench.drafts MODEL [--scenes N]`.

Generates the answers to questions about the scenes of the evaluation, constrained as by the
service, one request at a time and 16 in flight, in turns with drafts and without, and prints JSON.
Gains are medians of the rounds' ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.checkpoints.jobs import CATALOG_FILE
from export.evaluation import evaluation_scene
from export.scenes import question_prompts, questions, render_scene
from runners.artifacts.manifest import read_manifest
from runners.artifacts.store import artifact_folder
from runners.decoder.answers import to_request
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from runners.transport.messages import SequenceSpec
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES
from tasks.parameters import parse_parameters
from tasks.table import TASKS

_TASK_IDS = ("open_vocabulary_detection", "phrase_grounding")
# Clients, and how often they send every request: 16 soon have no more to send.
_CLIENTS = ((1, 1), (16, 6))
_NUM_ROUNDS = 9
_MAX_PREFILL_TOKENS = 4096
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt about an image, and its request."""

    prompt: str
    image: Image.Image
    request: SequenceRequest


@dataclass(frozen=True, slots=True)
class Run:
    """The answers to all requests, and the time that they took."""

    answers: Sequence[GeneratedSequence]
    tokens_per_s: float
    decode_s: float  # after the prefill, mean of a request


def asked(
    decoder: Decoder,
    encoder: VisionEncoder,
    entry: CatalogEntry,
    task_ids: Sequence[str],
    scenes: range,
) -> Iterator[Asked]:
    """Yield the prompts of all questions of `task_ids` about scenes of the evaluation."""
    side_px = entry.resolution
    for scene in map(evaluation_scene, scenes):
        image = render_scene(scene, side_px)
        features = encoder.encode(np.asarray(image)[None])[0]
        for question in (
            each.scaled((side_px, side_px)) for each in questions(scene) if each.task in task_ids
        ):
            parameters = parse_parameters(TASKS[question.task], question.parameters)
            grammar = FAMILIES[entry.family].answer_grammar(question.task, parameters)
            for prompt in question_prompts(entry, question, (side_px, side_px)):
                segments = [(segment.text, segment.is_control) for segment in prompt.segments]
                spec = SequenceSpec(
                    segments=segments, num_beams=1, grammar=grammar, timeout_s=_TIMEOUT_S
                )
                text = "".join(text for text, _ in segments)
                yield Asked(text, image, to_request(decoder, features, spec))


def generate(decoder: Decoder, requests: Sequence[SequenceRequest], num_clients: int) -> Run:
    """Generate the answers to `requests`, `num_clients` at a time."""
    scheduler = Scheduler(
        decoder, "bench", SchedulerLimits(num_clients, num_clients, _MAX_PREFILL_TOKENS)
    )
    scheduler.start()
    start_s = time.monotonic()
    with ThreadPoolExecutor(num_clients) as clients:
        written = list(
            clients.map(lambda each: scheduler.submit([each])[0].result(_TIMEOUT_S), requests)
        )
    wall_s = time.monotonic() - start_s
    scheduler.stop()
    answers = [each.sequence for each in written]
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    return Run(answers, num_tokens / wall_s, statistics.fmean(each.decode_s for each in written))


def generate_without_drafts(
    decoder: Any, requests: Sequence[SequenceRequest], num_clients: int
) -> Run:
    """Like `generate`, one token of each sequence at a time."""
    usual = decoder.can_draft, decoder.can_draft_first
    decoder.can_draft = decoder.can_draft_first = False
    try:
        return generate(decoder, requests, num_clients)
    finally:
        decoder.can_draft, decoder.can_draft_first = usual


def measure(
    decoder: Decoder, requests: Sequence[SequenceRequest], num_clients: int
) -> dict[str, Any]:
    """Return rates, gains and the number of equal answers."""
    arguments = decoder, requests, num_clients
    rounds = [
        (generate(*arguments), generate_without_drafts(*arguments)) for _ in range(_NUM_ROUNDS)
    ]
    pairs = zip(rounds[0][0].answers, rounds[0][1].answers, strict=True)
    return {
        "num_clients": num_clients,
        "num_answers": len(requests),
        "num_equal": sum(drafted.token_ids == plain.token_ids for drafted, plain in pairs),
        "tokens_per_s": round(statistics.median(drafted.tokens_per_s for drafted, _ in rounds)),
        "gain": statistics.median(
            drafted.tokens_per_s / plain.tokens_per_s for drafted, plain in rounds
        ),
        "gain_after_prefill": statistics.median(
            plain.decode_s / drafted.decode_s for drafted, plain in rounds
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model of BentoML's model store."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.drafts", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=20, metavar="N", help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = artifact_folder(parsed.model)
    entry = load_catalog(CATALOG_FILE)[parsed.model]
    decoder = load_decoder(folder, read_manifest(folder).family, "float32", "cpu")
    encoder = VisionEncoder(folder, precision="float32")
    encoder.load()
    for task_id in _TASK_IDS:
        requests = [
            each.request for each in asked(decoder, encoder, entry, [task_id], range(parsed.scenes))
        ]
        for num_clients, num_times in _CLIENTS:
            measured = measure(decoder, requests * num_times, num_clients)
            print(json.dumps({"model": parsed.model, "task": task_id} | measured), flush=True)


if __name__ == "__main__":
    main()
