"""Time of a decode step in the scheduler, and the model's share of it (`python -m
laboratory.bench.steps MODEL`).

Generates several sequences at once from empty image features, greedily and up to the same length
whatever the checkpoint's rules, and prints JSON. The rest of a step is token selection, generation
rules and the scheduler itself.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from runners.decoder.answers import to_request
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from wire.artifacts.manifest import Manifest, read_manifest
from wire.artifacts.model_store import artifact_folder
from wire.runner_messages import SequenceSpec

_NUM_SEQUENCES = (1, 4, 16)
_NUM_TOKENS = 48
_TIMEOUT_S = 600.0


def make_endless(decoder: Decoder) -> None:
    """Make answers end only at their limit, so that all measured steps have as many rows."""
    decoder.rules = replace(
        decoder.rules, eos_token_ids=frozenset({-1}), forced_eos_token_id=None, num_beams=1
    )


class TimedDecoder:
    """A decoder that records the start and end of each of its steps."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.steps: list[tuple[int, float, float]] = []  # sequences, start, end

    def __getattr__(self, name: str) -> Any:
        """Delegate everything but `decode_step`."""
        return getattr(self._decoder, name)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        """Run and time one step."""
        start_s = time.perf_counter()
        logits = self._decoder.decode_step(cache, places)
        self.steps.append((len(places.token_ids), start_s, time.perf_counter()))
        return logits


def measure_steps(decoder: Decoder, manifest: Manifest, num_sequences: int) -> dict[str, Any]:
    """Return mean step times of `num_sequences` sequences; make `decoder`'s answers endless."""
    make_endless(decoder)
    timed = TimedDecoder(decoder)
    limits = SchedulerLimits(
        num_sequences, num_sequences, num_sequences * manifest.num_image_tokens * 2
    )
    scheduler = Scheduler(timed, manifest.model_id, limits)
    scheduler.start()
    try:
        _generate(scheduler, decoder, manifest, num_sequences)
    finally:
        scheduler.stop()
    steps = [(start_s, end_s) for size, start_s, end_s in timed.steps if size == num_sequences]
    return {
        "model": manifest.model_id,
        "num_sequences": num_sequences,
        "num_steps": len(steps),
        "step_s": statistics.fmean(after[0] - before[0] for before, after in pairwise(steps)),
        "model_s": statistics.fmean(end_s - start_s for start_s, end_s in steps[:-1]),
    }


def _generate(
    scheduler: Scheduler, decoder: Decoder, manifest: Manifest, num_sequences: int
) -> None:
    features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)
    spec = SequenceSpec(
        segments=[("What does the image describe?", False)],
        max_new_tokens=_NUM_TOKENS,
        timeout_s=_TIMEOUT_S,
    )
    futures = scheduler.submit([to_request(decoder, features, spec) for _ in range(num_sequences)])
    for future in futures:
        future.result(_TIMEOUT_S)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model of BentoML's model store."""
    parser = argparse.ArgumentParser(
        "python -m laboratory.bench.steps", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = artifact_folder(parsed.model)
    manifest = read_manifest(folder)
    decoder = load_decoder(folder, manifest.family, "float32", "cpu")
    print(
        json.dumps(
            [measure_steps(decoder, manifest, num_sequences) for num_sequences in _NUM_SEQUENCES]
        )
    )


if __name__ == "__main__":
    main()
