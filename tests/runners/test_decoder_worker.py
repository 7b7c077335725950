"""A stream of sequences: the text of those that have pieces, and the outcome of all."""

import asyncio
from pathlib import Path

import pytest
import torch

from runners.model_worker import DecoderWorker
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import read_manifest
from wire.runner_messages import SequenceEnd, SequenceSpec, TextPiece, WritingEvent, Written

SPEC = SequenceSpec(
    segments=[("What does the image describe?", False)], max_new_tokens=5, timeout_s=60
)


def events_of(artifacts: Path, *specs: SequenceSpec) -> list[WritingEvent]:
    """Return what a real worker streams, on a CPU and with the default limits."""
    manifest = read_manifest(artifacts)
    options = runner_options(manifest.model_id, Settings(device="cpu"), ())
    worker = DecoderWorker(manifest, options, "cpu")
    worker.load(artifacts, 1)
    features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)

    async def events() -> list[WritingEvent]:
        return [event async for event in worker.stream(features, specs)]

    found = asyncio.run(events())
    worker.scheduler.stop()
    return found


@pytest.mark.parametrize(("max_work", "num_prefills"), [(800_000, 1), (1, 3)])
def test_by_default_prefills_of_more_work_go_one_by_one(
    exported: ModelStore, monkeypatch: pytest.MonkeyPatch, max_work: int, num_prefills: int
) -> None:
    monkeypatch.setattr("runners.options._CPU_PREFILL", max_work)
    found = events_of(exported.newest("florence-2-mini"), *[SPEC] * 3)
    outcomes = [event.outcome for event in found if isinstance(event, SequenceEnd)]
    queues_s = [each.queue_s for each in outcomes if isinstance(each, Written)]
    assert len(queues_s) == 3
    assert len(set(queues_s)) == num_prefills  # equal within a prefill


def test_a_sequence_without_pieces_has_its_outcome_alone(artifacts: Path) -> None:
    found = events_of(artifacts, SPEC, SPEC.model_copy(update={"has_pieces": False}))
    pieces = [event for event in found if isinstance(event, TextPiece)]
    assert {piece.index for piece in pieces} == {0}
    ends = {event.index: event.outcome for event in found if isinstance(event, SequenceEnd)}
    texts = [outcome.text for outcome in ends.values() if isinstance(outcome, Written)]
    assert texts == ["".join(piece.text for piece in pieces)] * 2
