"""The losses of a step: of the answers' tokens, of their writers' attention, and of auxiliary heads
that predict a cell's contents and its place in the answer.

The heads are used in training only. They teach the encoder to recognise objects, and the language
model to order them.

Shapes: B images, Q sequences, N cells, T answer tokens, M chosen states, C hidden, A heads, V
vocabulary, G grid positions of a location, L locations.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from export.scenes import CANVAS_PX, COLORS, SHAPES, SIZES
from laboratory.training.answers import CHARACTERS, NUM_SUBJECTS, WORD
from laboratory.training.examples import NO_TOKEN, NOTHING, NUM_SLOTS, Batch

_CLASSES = {  # and class 0, `NOTHING`
    "subject": NUM_SUBJECTS,
    "color": len(COLORS),
    "shape": len(SHAPES),
    "size": len(SIZES),
    "brightness": 2,
}
_MAX_CHARACTERS = 8  # a word has at most 5
_SLOTS = {"characters": len(CHARACTERS), "indices": _MAX_CHARACTERS}
_FOREGROUND_SHARE = 0.7  # share of the loss: objects cover few cells
_GRID_STEP_PX = 1.5
_REACH = 3  # grid steps to each side of a location's soft target
_MIN_MASS = 1e-6


def answer_losses(
    logits: Tensor, batch: Batch, location_ids: Tensor, sigma: float
) -> dict[str, Tensor]:
    """Return mean losses of ordinary tokens and locations; `logits` (Q, T, V), ids (bins,).

    A location has a soft target over its neighbours on the grid, `sigma` steps wide. An answer is
    weighted by the square root of its length; otherwise polygons would dominate.
    """
    is_token = batch["answer_ids"] != NO_TOKEN
    is_location = batch["steps"] > 0
    weights = is_token / is_token.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
    is_plain = is_token & ~is_location
    plain = cross_entropy(logits[is_plain].float(), batch["answer_ids"][is_plain], reduction="none")
    steps = batch["steps"][is_location][:, None]
    positions = batch["positions"][is_location][:, None]
    offsets = torch.arange(-_REACH, _REACH + 1, device=logits.device)
    bins = ((positions / steps).round().long() + offsets) * steps  # (L, 2 reach + 1)
    is_bin = (bins >= 0) & (bins < len(location_ids))
    distances = -(((bins - positions) / steps) ** 2) / (2 * sigma**2)
    targets = torch.softmax(distances.masked_fill(~is_bin, -torch.inf), dim=-1)
    ids = location_ids[bins.clamp(0, len(location_ids) - 1)]
    logprobs = torch.log_softmax(logits[is_location].float(), dim=-1).gather(1, ids)
    location = -(targets * logprobs).sum(dim=-1)
    total = weights.sum()
    return {
        "plain": (plain * weights[is_plain]).sum() / total,
        "location": (location * weights[is_location]).sum() / total,
    }


def attention_loss(attentions: list[Tensor], batch: Batch) -> Tensor:
    """Return −log of the attention to mentioned cells; `attentions` (Q, T, A, N) per layer.

    Each layer counts by its head with the most attention; in the last layer, coordinate c of a box
    counts by head c.
    """
    is_mentioning = batch["mentioned"].any(dim=-1)
    if not is_mentioning.any():
        return attentions[0].sum() * 0.0
    coordinates = batch["coordinates"][is_mentioning]
    cells = batch["mentioned"][is_mentioning][:, None]  # (M, 1, N)
    losses = []
    for index, attention in enumerate(attentions):
        mass = (attention[is_mentioning] * cells).sum(dim=-1)  # (M, A)
        best = mass.amax(dim=-1)
        if index == len(attentions) - 1:
            of_coordinate = mass.gather(1, coordinates.clamp(min=0)[:, None])[:, 0]
            best = torch.where(coordinates >= 0, of_coordinate, best)
        losses.append(-best.clamp(min=_MIN_MASS).log().mean())
    return torch.stack(losses).mean()


class CellHeads(nn.Module):
    """One linear layer per target of a cell."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict()
        for name, num in _CLASSES.items():
            self.classes[name] = nn.Linear(hidden_size, num + 1)
        self.slots = nn.ModuleDict()
        for name, num in _SLOTS.items():
            self.slots[name] = nn.Linear(hidden_size, NUM_SLOTS * (num + 1))
        self.box = nn.Linear(hidden_size, 4 * hidden_size)
        self.rank = nn.Linear(hidden_size, NUM_SUBJECTS + 1)  # 0: not in the answer

    def image_losses(
        self, cells: Tensor, images: Batch, locations: Tensor, sigma: float
    ) -> dict[str, Tensor]:
        """Return losses of features (B, N, C); `locations` (G, C) are `_GRID_STEP_PX` apart."""
        losses = {}
        for name, head in self.classes.items():
            losses[name] = _balanced(head(cells), images[name] + 1)
        is_word = images["subject"] == WORD
        for name, head in self.slots.items():
            logits = head(cells[is_word]).view(-1, _SLOTS[name] + 1)
            targets = images[name][is_word].flatten() + 1
            losses[name] = cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))
        is_part = images["subject"] != NOTHING
        boxes = images["box"][is_part]
        losses["box"] = _box_loss(self.box(cells[is_part]), boxes, locations, sigma)
        return losses

    def rank_loss(self, cells: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the order in which an answer mentions the cells (Q, N, C)."""
        return _balanced(self.rank(cells), batch["ranks"])


def grid_bins(bins_per_px: float) -> Tensor:
    """Return the bins of the multiples of `_GRID_STEP_PX` on the canvas."""
    steps_px = torch.arange(round(CANVAS_PX / _GRID_STEP_PX)) * _GRID_STEP_PX
    return (steps_px * bins_per_px).round().long()


def _box_loss(queries: Tensor, boxes: Tensor, locations: Tensor, sigma: float) -> Tensor:
    """Return the mean cross-entropy of queries (M, 4 C) for `boxes` (M, 4), 0 without any.

    A coordinate's target is a normal distribution over the grid positions.
    """
    logits = queries.view(-1, 4, locations.shape[1]) @ locations.T  # (M, 4, G)
    grid = torch.arange(len(locations), device=boxes.device)
    distances = grid - (boxes / _GRID_STEP_PX)[..., None]
    targets = torch.softmax(-(distances**2) / (2 * sigma**2), dim=-1)
    return -(targets * torch.log_softmax(logits, dim=-1)).sum() / max(1, boxes.numel())


def _balanced(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, with fixed weights for class 0 and for all others."""
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    is_foreground = (targets.flatten() > 0).float()
    foreground = (losses * is_foreground).sum() / is_foreground.sum().clamp(min=1)
    background = (losses * (1 - is_foreground)).sum() / (1 - is_foreground).sum().clamp(min=1)
    return _FOREGROUND_SHARE * foreground + (1 - _FOREGROUND_SHARE) * background
