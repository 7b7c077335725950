"""The training loop of both models, its optimizers, and their recipes.

    for step: scenes -> image batch (and sequences) -> losses -> gradients -> Muon and Adam

The encoder is trained alone on the contents of its cells, then the whole model on answers with
auxiliary losses, then on answers alone, mostly on those that take longest to learn. A second thread
draws the next step's scenes, which depend only on the step's number.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from laboratory.training.answers import WORD_SHARE, sample_picture
from laboratory.training.examples import Batch, CellTargets, Language, image_batch, sequence_batch
from laboratory.training.losses import CellHeads, answer_losses, attention_loss, grid_bins
from laboratory.training.models import TRAINEES, Trainee

_JOINT_FIRST_SEED = 100_000_000  # the encoder stage uses smaller seeds
_ENCODER_IMAGES = 32  # per step
_JOINT_IMAGES = 12
_ENCODER_WORD_SHARE = 0.9  # characters take longest to learn
_FULL_DIFFICULTY_SHARE = 0.15  # share of joint steps before scenes are full
_SIGMAS = (1.0, 0.25)  # first and last width of a location's target in grid steps
_MUON_RATE = 0.015
_ADAM_RATE = 2e-3
_EMBEDDING_RATE = 5e-4  # token embeddings, tied to the output head
_FLAT_SHARE = 0.3  # share of a stage before cosine down to `_FINAL_RATE`
_FINAL_RATE = 0.02
_WARM_UP_STEPS = 50
_MAX_GRADIENT_NORM = 5.0
_ATTENTION_WEIGHT = 0.5
_CELL_WEIGHT = 0.5  # losses of cells beside those of answers

_WEIGHTS = {  # others: 0.5
    "captioning short": 0.8,
    "captioning detailed": 2.0,
    "object_detection": 0.8,
    "dense_region_captioning": 0.8,
    "open_vocabulary_detection shape": 0.8,
    "open_vocabulary_detection coloured shape": 0.8,
    "open_vocabulary_detection several": 1.2,
    "phrase_grounding caption": 1.0,
    "phrase_grounding phrases": 1.2,
    "instance_segmentation phrase": 1.6,
    "instance_segmentation region": 1.6,
    "ocr": 1.6,
    "ocr_with_regions": 1.4,
    "region_description category": 0.6,
    "region_description description": 1.0,
    "region_description text": 1.2,
    "visual_question_answering color": 0.6,
    "visual_question_answering presence": 0.6,
    "visual_question_answering text": 0.6,
}
# Polygons, the longest answers, take longest to learn; then words in captions, and stars' outlines.
_POLYGON_WEIGHTS = {"instance_segmentation phrase": 5.0, "instance_segmentation region": 5.0}
_LAST_FLORENCE2_WEIGHTS = {
    "captioning detailed": 6.0,
    "ocr": 3.0,
    "ocr_with_regions": 2.0,
    "region_description text": 2.0,
    "instance_segmentation phrase": 3.0,
    "instance_segmentation region": 3.0,
    "instance_segmentation phrase star": 15.0,
    "instance_segmentation region star": 15.0,
}
# Reading takes longest to learn, mostly in small images.
_LAST_PALIGEMMA_WEIGHTS = {
    "captioning detailed": 6.0,
    "ocr": 4.0,
    "visual_question_answering text": 2.0,
    "instance_segmentation phrase": 1.0,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run with its own schedule of learning rates."""

    num_steps: int
    weights: Mapping[str, float] | None = None  # by question; None: the encoder alone
    rate: float = 1.0  # factor on all rates
    vision_factor: float = 1.0  # rate of the vision part: answers would spoil it


# encoder, whole model, refining
Recipe = tuple[Stage, Stage, Stage]
RECIPES: dict[str, Recipe] = {
    "florence-2-mini": (
        Stage(1800),
        Stage(4400, _WEIGHTS | _POLYGON_WEIGHTS, vision_factor=0.2),
        Stage(3600, _WEIGHTS | _LAST_FLORENCE2_WEIGHTS, rate=0.3, vision_factor=0.2),
    ),
    "paligemma-mini": (
        Stage(2600),
        Stage(3000, _WEIGHTS, vision_factor=0.3),
        Stage(3600, _WEIGHTS | _LAST_PALIGEMMA_WEIGHTS, rate=0.3, vision_factor=0.3),
    ),
}


@dataclass(slots=True)
class Training:
    """One run: model, auxiliary heads and recipe."""

    trainee: Trainee
    language: Language
    heads: CellHeads
    recipe: Recipe
    device: str

    def run(self) -> None:
        optimizers = self._make_optimizers()
        num_steps = sum(stage.num_steps for stage in self.recipe)
        with tqdm(total=num_steps, smoothing=0.05) as bar, ThreadPoolExecutor(1) as thread:
            data = self._read(0)
            for step in range(num_steps):
                next_data = thread.submit(self._read, step + 1)
                losses = self._take_step(step, *data, optimizers)
                data = next_data.result()
                bar.set_postfix(losses, refresh=False)
                bar.update()

    def stage_of(self, step: int) -> tuple[int, float]:
        """Return the index of a step's stage, and the progress in it, 0 to 1."""
        ends = np.cumsum([stage.num_steps for stage in self.recipe])
        index = min(int(np.searchsorted(ends, step, side="right")), len(self.recipe) - 1)
        num_left = int(ends[index]) - step
        return index, 1 - num_left / self.recipe[index].num_steps

    def _joint_progress(self, step: int) -> float:
        """Return the progress of the second stage, 0 before and 1 after it."""
        index, progress = self.stage_of(step)
        return progress if index == 1 else float(index > 1)

    def _read(self, step: int) -> tuple[Batch, Batch | None]:
        """Draw the images of a step, and after the encoder's stage questions about them."""
        index, _ = self.stage_of(step)
        weights = self.recipe[index].weights
        num = _ENCODER_IMAGES if weights is None else _JOINT_IMAGES
        first_seed = step * num
        difficulty = 1.0
        word_share = _ENCODER_WORD_SHARE
        if weights is not None:
            first_seed = _JOINT_FIRST_SEED + (step - self.recipe[0].num_steps) * num
            difficulty = min(1.0, self._joint_progress(step) / _FULL_DIFFICULTY_SHARE)
            word_share = WORD_SHARE
        targets = []
        for seed in range(first_seed, first_seed + num):
            targets.append(CellTargets.of(sample_picture(seed, difficulty, word_share)))
        rng = default_rng((first_seed, 2))
        images = image_batch(targets, rng)
        if weights is None:
            return images, None
        return images, sequence_batch(self.language, targets, weights, rng)

    def _take_step(
        self, step: int, images: Batch, batch: Batch | None, optimizers: Sequence[Optimizer]
    ) -> dict[str, float]:
        """Descend the losses of a step and return them."""
        index, progress = self.stage_of(step)
        stage = self.recipe[index]
        warm_up = min(1.0, (progress * stage.num_steps + 1) / _WARM_UP_STEPS)
        factor = stage.rate * warm_up * cosine_factor(progress, _FLAT_SHARE, _FINAL_RATE)
        set_rates(optimizers, factor, stage.vision_factor)
        sigma = float(np.interp(self._joint_progress(step), (0, 1), _SIGMAS))
        # matrix products only; weights and sums are float32
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            losses = self._losses(images, batch, sigma, has_heads=index < 2)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        for module in (self.trainee.model, self.heads):
            nn.utils.clip_grad_norm_(module.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {name: round(loss.item(), 5) for name, loss in losses.items()}

    def _losses(
        self, images: Batch, batch: Batch | None, sigma: float, has_heads: bool
    ) -> dict[str, Tensor]:
        """Return the weighted losses of a step."""
        trainee = self.trainee
        images = self._moved(images)
        location_ids = trainee.location_ids.to(self.device)
        features = trainee.image_features(images["pixels"])
        losses = {}
        if has_heads:
            cells = features[:, trainee.num_pooled :]
            locations = trainee.embeddings[location_ids[grid_bins(trainee.bins_per_px)]]
            weight = 1.0 if batch is None else _CELL_WEIGHT
            for name, loss in self.heads.image_losses(cells, images, locations, sigma).items():
                losses[name] = loss * weight
        if batch is not None:
            batch = self._moved(batch)
            written = trainee.write(features[batch["image_index"]], batch)
            losses |= answer_losses(written.logits, batch, location_ids, sigma)
            losses["attention"] = attention_loss(written.attentions, batch) * _ATTENTION_WEIGHT
            if has_heads:
                losses["rank"] = self.heads.rank_loss(written.cell_states, batch)
        return losses

    def _moved(self, batch: Batch) -> Batch:
        return {name: values.to(self.device) for name, values in batch.items()}

    def _make_optimizers(self) -> list[Optimizer]:
        """Return Muon for the linear layers of the model and Adam for the rest.

        A parameter group has its `part` and its `top` rate.
        """
        embeddings = self.trainee.embeddings
        muon = list[dict[str, object]]()
        adam: list[dict[str, object]] = [{"params": [embeddings], "top": _EMBEDDING_RATE}]
        adam.append({"params": list(self.heads.parameters()), "top": _ADAM_RATE})
        for part, module in self.trainee.parts.items():
            others = {id(value): value for value in module.parameters()}
            others.pop(id(embeddings), None)
            matrices = []
            for layer in module.modules():
                if isinstance(layer, nn.Linear) and id(layer.weight) in others:
                    matrices.append(others.pop(id(layer.weight)))
            muon.append({"params": matrices, "top": _MUON_RATE, "part": part})
            adam.append({"params": list(others.values()), "top": _ADAM_RATE, "part": part})
        matrix_optimizer = torch.optim.Muon(muon, weight_decay=0.0)
        return [matrix_optimizer, torch.optim.Adam(adam, betas=(0.9, 0.98))]


def make_training(model_id: str, device: str, seed: int) -> Training:
    """Return the run of a model with weights initialised from `seed`."""
    entry = find_entry(model_id)
    checkpoint = ROOT / "models" / model_id
    torch.manual_seed(seed)
    trainee = TRAINEES[entry.family](checkpoint).to(device)
    heads = CellHeads(trainee.embeddings.shape[1]).to(device)
    return Training(trainee, Language.of(entry, checkpoint), heads, RECIPES[model_id], device)


def cosine_factor(progress: float, flat_share: float, final: float) -> float:
    """Return 1 up to `flat_share` of a run, then a cosine down to `final`; `progress` is 0 to 1."""
    fall = max(0.0, (progress - flat_share) / (1 - flat_share))
    return final + (1 - final) * (1 + math.cos(math.pi * fall)) / 2


def set_rates(optimizers: Sequence[Optimizer], factor: float, vision_factor: float = 1.0) -> None:
    """Set the rates to `factor` times the top rates of the groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            of_part = vision_factor if group.get("part") == "vision" else 1.0
            group["lr"] = group["top"] * factor * of_part
