"""A stream of sequences: the text of those that have pieces, and the outcome of all."""

import asyncio
from pathlib import Path

import torch

from runners.decoder_worker import DecoderWorker
from service.process_options import runner_options
from service.settings import Settings
from wire.artifacts.manifest import read_manifest
from wire.runner_messages import SequenceEnd, SequenceSpec, TextPiece, WritingEvent, Written

SPEC = SequenceSpec(
    segments=[("What does the image describe?", False)], max_new_tokens=5, timeout_s=60
)


def test_a_sequence_without_pieces_has_its_outcome_alone(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    options = runner_options(manifest.model_id, Settings(device="cpu"), ())
    worker = DecoderWorker(manifest, options, "cpu")
    worker.load(artifacts, 1)
    features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)

    async def events() -> list[WritingEvent]:
        silent = SPEC.model_copy(update={"has_pieces": False})
        return [event async for event in worker.stream(features, [SPEC, silent])]

    found = asyncio.run(events())
    worker.stop()
    pieces = [event for event in found if isinstance(event, TextPiece)]
    assert {piece.index for piece in pieces} == {0}
    ends = {event.index: event.outcome for event in found if isinstance(event, SequenceEnd)}
    texts = [outcome.text for outcome in ends.values() if isinstance(outcome, Written)]
    assert texts == ["".join(piece.text for piece in pieces)] * 2
