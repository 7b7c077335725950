"""The fake card for the check of a GPU: one that computes, and broken ones."""

import os
from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from laboratory.gpu_check import exactness
from laboratory.gpu_check.parts import Model
from laboratory.gpu_check.report import Verdict
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest


def run_on_card(kind: str, function: str, *arguments: Any) -> Verdict:
    """Run a check on a card that computes what the CPU does, or is broken as `kind` says.

    With wrong numbers it computes nothing.
    """
    os.environ["FAKE_CUDA_BROKEN"] = kind
    if kind != "numbers":
        features: list[Tensor] = []
        answers: list[Any] = []
        load_encoder = Model.encoder

        def encoder(model: Model, *options: Any, **named: Any) -> Any:
            loaded: Any = load_encoder(model, *options, **named)
            encode = loaded.encode
            loaded.encode = lambda images: first_of(features, encode(images))
            return loaded

        def generate(decoder: Decoder, batch: list[SequenceRequest]) -> Any:
            return first_of(answers, generate_all(decoder, batch))

        Model.encoder = encoder  # type: ignore[assignment,method-assign]
        exactness.generate_all = generate  # type: ignore[assignment,attr-defined]
    verdict = resolve_name(function)(*arguments)
    assert isinstance(verdict, Verdict)
    return verdict


def first_of(results: list[Any], result: Any) -> Any:
    """Return the first result, that of the CPU."""
    results.append(result)
    return results[0]
