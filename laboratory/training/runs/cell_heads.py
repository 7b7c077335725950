"""Auxiliary heads that predict a cell's targets from its features and from the states of writers
that mention it.

Used in training only. They teach the encoder to recognise objects, the language model to preserve
their attributes in the cells' states, and writers to retrieve all attributes of the mentioned
object, not only the next token.

Shapes: B images, Q sequences, N cells, T answer tokens, M chosen states, C hidden, G grid positions
of a location.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from export.scenes import CANVAS_PX
from laboratory.training.data.batches import ImageBatch, SequenceBatch
from laboratory.training.data.cell_targets import MAX_CHARACTERS, NOTHING, NUM_SLOTS
from laboratory.training.data.pictures import CHARACTERS, FIRST_LINE, NUM_CLASSES, NUM_SUBJECTS
from laboratory.training.runs.losses import soft_cross_entropy, soft_targets

NUM_RANKS = NUM_SUBJECTS + 1  # 0: not in the answer
_CLASSES = {"subject": NUM_SUBJECTS, **NUM_CLASSES}  # and class 0, `NOTHING`
_ATTRIBUTES = ("color", "thing", "size")
_SLOTS = {"characters": len(CHARACTERS), "indices": MAX_CHARACTERS}
_FOREGROUND_SHARE = 0.7  # share of the loss: objects cover few cells
_MAX_PLACES = 40  # run of locations: a thing's polygon has at most twenty points
GRID_STEP_PX = 1.5


class CellHeads(nn.Module):
    """One linear layer per target of a cell."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict(
            {name: nn.Linear(hidden_size, num + 1) for name, num in _CLASSES.items()}
        )
        self.slots = nn.ModuleDict(
            {name: nn.Linear(hidden_size, NUM_SLOTS * (num + 1)) for name, num in _SLOTS.items()}
        )
        self.box = nn.Linear(hidden_size, 4 * hidden_size)
        self.rank = nn.Linear(hidden_size, NUM_RANKS)
        self.kept = AttributeHeads(hidden_size)
        self.fetched = AttributeHeads(hidden_size)
        self.place = nn.Linear(hidden_size, _MAX_PLACES)

    def image_losses(
        self, cells: Tensor, images: ImageBatch, locations: Tensor, sigma: float
    ) -> dict[str, Tensor]:
        """Return losses of features (B, N, C); `locations` (G, C) are `GRID_STEP_PX` apart."""
        losses = {
            name: _balanced(head(cells), getattr(images, name) + 1)
            for name, head in self.classes.items()
        }
        is_line = images.subject >= FIRST_LINE
        for name, head in self.slots.items():
            logits = head(cells[is_line]).unflatten(-1, (NUM_SLOTS, -1))
            losses[name] = _mean_loss(logits, getattr(images, name)[is_line] + 1)
        is_thing = images.subject != NOTHING
        queries = self.box(cells[is_thing]).unflatten(-1, (4, -1))  # (cells, 4, C)
        targets = soft_targets(images.box[is_thing] / GRID_STEP_PX, len(locations), sigma)
        losses["box"] = soft_cross_entropy(queries @ locations.T, targets).mean()
        return losses

    def kept_loss(
        self, cells: Tensor, batch: SequenceBatch, images: ImageBatch, locations: Tensor
    ) -> Tensor:
        """Return the attribute loss of the cell states (Q, N, C) of an answer's subjects."""
        sequence, cell = batch.ranks.nonzero(as_tuple=True)
        return self.kept.loss(
            cells[sequence, cell], images, (batch.image_index[sequence], cell), locations
        )

    def fetched_loss(
        self, writers: Tensor, batch: SequenceBatch, images: ImageBatch, locations: Tensor
    ) -> Tensor:
        """Return the attribute loss of the writers (Q, T, C) of tokens that mention objects."""
        sequence, token = batch.mentioned.any(dim=-1).nonzero(as_tuple=True)
        cell = batch.mentioned[sequence, token].int().argmax(dim=-1)
        return self.fetched.loss(
            writers[sequence, token], images, (batch.image_index[sequence], cell), locations
        )

    def place_loss(self, writers: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the loss of a location's index in its run, predicted from its writer (Q, T, C)."""
        is_location = batch.places >= 0
        return _mean_loss(
            self.place(writers[is_location]), batch.places[is_location].clamp(max=_MAX_PLACES - 1)
        )

    def rank_loss(self, cells: Tensor, ranks: Tensor) -> Tensor:
        """Return the loss of the mention order, `ranks` (B, N), of cells (B, N, C)."""
        return _balanced(self.rank(cells), ranks)


class AttributeHeads(nn.Module):
    """Predicts colour, shape, size and box of the object that a state represents."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict(
            {name: nn.Linear(hidden_size, NUM_CLASSES[name] + 1) for name in _ATTRIBUTES}
        )
        self.box = nn.Linear(hidden_size, 4 * hidden_size)

    def loss(
        self, states: Tensor, images: ImageBatch, places: tuple[Tensor, Tensor], locations: Tensor
    ) -> Tensor:
        """Return the mean losses' sum of `states` (M, C); `places` are image (M,), cell (M,)."""
        losses = [
            _mean_loss(head(states), getattr(images, name)[places] + 1)
            for name, head in self.classes.items()
        ]
        queries = self.box(states).unflatten(-1, (4, -1))
        targets = soft_targets(images.box[places] / GRID_STEP_PX, len(locations), sigma=1.0)
        losses.append(
            soft_cross_entropy(queries @ locations.T, targets).sum()
            / max(1, targets[..., 0].numel())
        )
        return torch.stack(losses).sum()


def _balanced(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, with fixed weights for class 0 and for all others."""
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    is_foreground = (targets.flatten() > 0).float()
    foreground = (losses * is_foreground).sum() / is_foreground.sum().clamp(min=1)
    background = (losses * (1 - is_foreground)).sum() / (1 - is_foreground).sum().clamp(min=1)
    return _FOREGROUND_SHARE * foreground + (1 - _FOREGROUND_SHARE) * background


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, 0 without targets."""
    if not targets.numel():
        return logits.sum() * 0.0
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


def grid_bins(bins_per_px: float) -> Tensor:
    """Return the bins of the multiples of `GRID_STEP_PX` on the canvas."""
    return (
        (torch.arange(round(CANVAS_PX / GRID_STEP_PX)) * GRID_STEP_PX * bins_per_px).round().long()
    )
