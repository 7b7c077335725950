"""`python -m tests.support.four_bit_bases`: the answers of an adapter over its base, and over the
base in 4 bits, as QLoRA trains it.

bitsandbytes' NF4 is computed here, without a GPU: blocks of 64 weights, each one of 16 values times
the block's largest. As there, all linear layers but the output head are rounded. Source: QLoRA,
arXiv 2305.14314, appendix E; bitsandbytes, functional.py (`get_4bit_type`, `quantize_4bit`).
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from export.artifacts.vision_module import read_image_input
from export.checks.answers import equal_share
from export.checks.parity import Probe, make_probes, run_reference
from export.checks.reference import Reference
from tests.support.catalog import CATALOG
from tests.support.export_cli import EMBEDDED, MODELS
from tests.support.lora import LAYERS, peft_model

BLOCK = 64
ADAPTERS = {"none": None, "language model": LAYERS, "language model and head": f"{LAYERS}|lm_head"}
_HEAD = "lm_head"
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


def rounded(weight: Tensor) -> Tensor:
    """Return the float32 weights that a layer in NF4 computes with; whole blocks only."""
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    codes = ((blocks / largest)[..., None] - NF4).abs().argmin(-1)
    return (NF4[codes] * largest).view(weight.shape)


@torch.no_grad()
def round_linear_layers(model: nn.Module) -> None:
    """Round the weights of all linear layers but the head, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(_HEAD):
            module.weight.copy_(rounded(module.weight))


def rows() -> Iterator[str]:
    """Yield a row of docs/models.md for each model and adapter."""
    for model_id in EMBEDDED:
        base, four_bit = (Reference.load(MODELS / model_id) for _ in range(2))
        round_linear_layers(four_bit.model)
        image_input = read_image_input(base.processor.image_processor)
        probes = make_probes(CATALOG[model_id], image_input)
        for name, targets in ADAPTERS.items():
            pairs = zip(
                answers(base, targets, probes), answers(four_bit, targets, probes), strict=True
            )
            shares = [equal_share(one, other) for one, other in pairs]
            num_equal = sum(share == 1 for share in shares)
            yield f"| {model_id} | {name} | {fmean(shares):.3f} | {num_equal} of {len(shares)} |"


def answers(
    reference: Reference, targets: str | None, probes: Sequence[Probe]
) -> list[tuple[int, ...]]:
    """Return the tokens of greedy answers, with a random adapter of `targets` beside the base."""
    tuned = None
    if targets is not None:
        tuned = peft_model(reference.model, 0, {"target_modules": targets}).eval()
    given = run_reference(reference, probes).answers
    if tuned is not None:
        tuned.unload()
    return [answer.token_ids for answer in given]


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
