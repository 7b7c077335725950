"""The losses of answers: of their tokens, and of their writers' attention.

Shapes: Q sequences, T answer tokens, N cells, A heads, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from laboratory.training.data.batches import NO_TOKEN, SequenceBatch

_REACH = 3  # grid steps to each side of a location's soft target
_MIN_MASS = 1e-6


def soft_targets(positions: Tensor, num: int, sigma: float) -> Tensor:
    """Return normal distributions (…, num) over 0 to `num` - 1 around `positions` (…)."""
    distance = torch.arange(num, device=positions.device) - positions[..., None]
    return torch.softmax(-(distance**2) / (2 * sigma**2), dim=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (…) of `logits` and distributions `targets`, both (…, V)."""
    return -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def answer_loss(
    states: Tensor, embeddings: Tensor, batch: SequenceBatch, location_ids: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return mean losses of ordinary tokens and locations; `states` (Q, T, C), ids (bins,).

    Padding gets no logits, the largest tensors of a step: `embeddings` (V, C) are the output head.
    A location has a soft target over its neighbours on the grid, `sigma` steps wide. An answer is
    weighted by the square root of its length; otherwise polygons would dominate.
    """
    is_token = batch.answer_ids != NO_TOKEN
    is_location = batch.steps > 0
    weights = is_token / is_token.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
    is_plain = is_token & ~is_location
    logits = (states[is_plain] @ embeddings.T).float()
    plain = cross_entropy(logits, batch.answer_ids[is_plain], reduction="none")
    spread = _spread_loss(
        (states[is_location] @ embeddings.T).float(),
        batch.positions[is_location],
        batch.steps[is_location],
        location_ids,
        sigma,
    )
    total = weights.sum()
    return (plain * weights[is_plain]).sum() / total, (spread * weights[is_location]).sum() / total


def _spread_loss(
    logits: Tensor, positions: Tensor, steps: Tensor, location_ids: Tensor, sigma: float
) -> Tensor:
    """Return losses (L,) of `logits` (L, V) against soft targets, in bins on grids of `steps`."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=logits.device)
    # (L, 2 reach + 1)
    bins = ((positions / steps).round().long()[:, None] + offsets) * steps[:, None]
    is_bin = (bins >= 0) & (bins < len(location_ids))
    distance = (bins - positions[:, None]) / steps[:, None]
    targets = torch.softmax(
        (-(distance**2) / (2 * sigma**2)).masked_fill(~is_bin, -torch.inf), dim=-1
    )
    ids = location_ids[bins.clamp(0, len(location_ids) - 1)]
    return -(targets * torch.log_softmax(logits, dim=-1).gather(1, ids)).sum(dim=-1)


def attention_loss(attentions: list[Tensor], batch: SequenceBatch) -> Tensor:
    """Return −log of the attention to mentioned cells; `attentions` (Q, T, A, N) per layer.

    Each layer counts by its head with the most attention; in the last layer, coordinate c of a box
    counts by head c.
    """
    mentioned = batch.mentioned.any(dim=-1)
    coordinates = batch.coordinates[mentioned]
    losses = []
    for index, attention in enumerate(attentions):
        cells = batch.mentioned[mentioned]  # (M, N)
        mass = (attention[mentioned] * cells[:, None]).sum(dim=-1)  # (M, A)
        best = mass.amax(dim=-1)
        if index == len(attentions) - 1:
            own = mass.gather(1, coordinates.clamp(min=0)[:, None])[:, 0]
            best = torch.where(coordinates >= 0, own, best)
        losses.append(-best.clamp(min=_MIN_MASS).log().mean())
    return torch.stack(losses).mean() if mentioned.any() else attentions[0].sum() * 0.0
