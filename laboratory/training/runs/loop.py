"""The training loop of both families.

    for step: scenes -> image batch (and sequences) -> losses -> gradients -> Muon and Adam

The encoder is trained alone on cell targets first, then the whole model on answers. A stopped run
resumes from its folder; its scenes depend only on the step's number. A second thread draws the next
step's scenes. Several processes share the images of a step; the first one keeps the folder.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from laboratory.training.data.batches import (
    ImageBatch,
    SequenceBatch,
    image_batch,
    sequence_batch,
)
from laboratory.training.data.cell_targets import cell_targets
from laboratory.training.data.pictures import Picture
from laboratory.training.data.shape_pictures import SIZES_PX, Kind, sample_pictures
from laboratory.training.models.trainee import FamilyParts, WrittenAnswers
from laboratory.training.runs.cell_heads import CellHeads, grid_bins
from laboratory.training.runs.losses import answer_loss, attention_loss
from laboratory.training.runs.optimizer import (
    cosine_factor,
    descend,
    make_optimizers,
    set_rates,
)
from laboratory.training.runs.processes import num_processes, process_index
from laboratory.training.runs.recipes import Recipe, Stage, StageName
from laboratory.training.runs.run_folder import RunFolder
from laboratory.training.runs.validation import validate

_JOINT_FIRST_SEED = 100_000_000  # the encoder stage uses smaller seeds
_LOGGED_EVERY = 10
_VALIDATION_FIRST_SEED = 800_000_000
_NUM_VALIDATION_PICTURES = 24
_SHOWN_MEASURES = (": exact", ": f1_at_50", ": f1_at_75", ": mask_iou", ": empty")


@dataclass(frozen=True, slots=True)
class _StepData:
    """The scenes of one step, and questions about them after the encoder stage."""

    images: ImageBatch
    sequences: SequenceBatch | None


@dataclass(frozen=True, slots=True)
class _Features:
    """The images of one step with their features."""

    images: ImageBatch
    features: Tensor  # (B, all image tokens, C)
    locations: Tensor  # (G, C) embeddings of locations at multiples of `GRID_STEP_PX`


@dataclass(slots=True)
class Training:
    """One run: model, auxiliary heads, recipe and folder."""

    parts: FamilyParts
    heads: CellHeads
    recipe: Recipe
    folder: RunFolder
    device: str
    is_bfloat16: bool = False  # matrix products only; weights and sums stay float32
    optimizers: Sequence[Optimizer] = ()
    step: int = 0

    def run(self, last_step: int | None = None) -> None:
        """Train from the stored step to `last_step`, or to the recipe's last."""
        self.optimizers = self._make_optimizers()
        modules = self._modules
        self.step = self.folder.restore(modules, self.optimizers)
        last = last_step or self.recipe.num_steps
        is_first = process_index() == 0
        with (
            tqdm(total=last, initial=self.step, smoothing=0.05, disable=not is_first) as bar,
            ThreadPoolExecutor(1) as thread,
        ):
            data = self._read(self.step)
            while self.step < last:
                start_s = time.monotonic()
                next_data = thread.submit(self._read, self.step + 1)
                figures = self._take_step(data)
                data = next_data.result()  # before a validation, which draws scenes too
                self.step += 1
                bar.update()
                if is_first and self.step % _LOGGED_EVERY == 0:
                    shown = [name for name in ("loss", "box", "plain") if name in figures]
                    bar.set_postfix({name: f"{figures[name]:.2f}" for name in shown})
                    step_s = time.monotonic() - start_s
                    self.folder.log({"step": self.step, "step_s": step_s, **figures})
                if is_first:
                    self._keep(modules)
        if is_first:
            self.folder.save(self.step, modules, self.optimizers)

    def begin(self, name: StageName, weights: Mapping[str, Tensor]) -> None:
        """Store a state at the start of a stage with these weights."""
        self.parts.trainee.model.load_state_dict(weights)
        (first_step,) = (each.first_step for each in self.recipe.stages if each.name == name)
        self.folder.save(first_step, self._modules, self._make_optimizers())

    @property
    def validation_pictures(self) -> list[Picture]:
        """Pictures that no step reads, the same for every validation."""
        return sample_pictures(_VALIDATION_FIRST_SEED, _NUM_VALIDATION_PICTURES, Kind())

    @property
    def _modules(self) -> list[nn.Module]:
        return [self.parts.trainee.model, self.heads]

    def _keep(self, modules: Sequence[nn.Module]) -> None:
        """Save and validate at the recipe's intervals."""
        if self.step % self.recipe.saved_every == 0:
            self.folder.save(self.step, modules, self.optimizers)
        if self.step > self.recipe.encoder_steps and self.step % self.recipe.validation_every == 0:
            scorecard = validate(self.parts, self.validation_pictures)
            figures = {
                f"{name}: {measure}": tally.f1
                for (name, measure), tally in scorecard.tallies.items()
            }
            shown = ", ".join(
                f"{name} {figure:.2f}"
                for name, figure in figures.items()
                if name.endswith(_SHOWN_MEASURES)
            )
            self.folder.log({"step": self.step, **figures})
            tqdm.write(f"step {self.step}: {shown}")

    def _take_step(self, data: _StepData) -> dict[str, float]:
        recipe = self.recipe
        stage = recipe.stage_of(self.step)
        cosine = cosine_factor(stage.progress(self.step), recipe.flat_share, recipe.final_rate)
        warm_up = min(1.0, (self.step - stage.first_step + 1) / recipe.warm_up_steps)
        factor = stage.top_rate * warm_up * cosine
        vision_factor = 1.0 if stage.name == "encoder" else recipe.joint_vision_factor
        set_rates(self.optimizers, factor, {"vision": vision_factor})
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_bfloat16):
            losses = self._losses(stage, data)
        loss = torch.stack(list(losses.values())).sum()
        descend(loss, self._modules, self.optimizers, recipe.max_gradient_norm)
        return {"loss": loss.item(), "rate": factor} | {
            name: value.item() for name, value in losses.items()
        }

    def _read(self, step: int) -> _StepData:
        """Draw the scenes of a step, and the questions about them."""
        recipe = self.recipe
        trainee = self.parts.trainee
        stage = recipe.stage_of(step)
        is_encoder = stage.name == "encoder"
        if is_encoder:
            num = recipe.encoder_images
            first_seed = step * num
            kind = Kind(is_encoder=True)
        else:
            num = recipe.joint_images
            first_seed = _JOINT_FIRST_SEED + (step - recipe.encoder_steps) * num
            kind = Kind(min(1.0, self._progress(step) / recipe.full_difficulty_share))
        num //= num_processes()
        first_seed += process_index() * num
        rng = default_rng((first_seed, 2))
        pictures = sample_pictures(first_seed, num, kind)
        targets = [cell_targets(picture, trainee.size.grid) for picture in pictures]
        images = image_batch(pictures, targets, rng, trainee.size.image_px, SIZES_PX)
        if is_encoder:
            return _StepData(images, None)
        weights = recipe.refining_weights if stage.name == "refining" else recipe.weights
        per_image = recipe.sequences_per_image
        sequences = sequence_batch(self.parts.language, pictures, targets, weights, per_image, rng)
        return _StepData(images, sequences)

    def _progress(self, step: int) -> float:
        """Return the progress of the joint stage, 0 before and 1 after it."""
        return min(1.0, max(0.0, self.recipe.stages[1].progress(step)))

    def _losses(self, stage: Stage, data: _StepData) -> dict[str, Tensor]:
        """Return the weighted losses of a step."""
        recipe = self.recipe
        trainee = self.parts.trainee
        data.images.to(self.device)
        progress = self._progress(self.step)
        sigma = recipe.first_sigma + (recipe.final_sigma - recipe.first_sigma) * progress
        locations = trainee.embeddings[self._location_ids[grid_bins(trainee.bins_per_px)]]
        sampled = _Features(data.images, trainee.image_features(data.images.pixels), locations)
        batch = data.sequences
        if batch is None:
            return self._image_losses(sampled, sigma)
        batch.to(self.device)
        written = trainee.write_by_length(sampled.features, batch)
        plain, location = answer_loss(
            written.states, trainee.embeddings, batch, self._location_ids, sigma
        )
        attention = attention_loss(written.attentions, batch) * recipe.attention_weight
        losses = {"plain": plain, "location": location, "attention": attention}
        if stage.name != "refining":
            losses |= self._auxiliary_losses(sampled, written, batch, sigma)
        return losses

    def _image_losses(self, sampled: _Features, sigma: float) -> dict[str, Tensor]:
        """Return the losses of cell targets predicted from image features."""
        return self.heads.image_losses(
            self.parts.trainee.cells(sampled.features), sampled.images, sampled.locations, sigma
        )

    def _auxiliary_losses(
        self, sampled: _Features, written: WrittenAnswers, batch: SequenceBatch, sigma: float
    ) -> dict[str, Tensor]:
        """Return the weighted losses of the auxiliary heads."""
        recipe = self.recipe
        heads = self.heads
        cells = {
            name: loss * recipe.cell_weight
            for name, loss in self._image_losses(sampled, sigma).items()
        }
        kept = heads.kept_loss(written.cell_states, batch, sampled.images, sampled.locations)
        fetched = heads.fetched_loss(
            written.writer_states, batch, sampled.images, sampled.locations
        )
        return cells | {
            "kept": kept * recipe.attribute_weight,
            "fetched": fetched * recipe.attribute_weight,
            "place": heads.place_loss(written.writer_states, batch) * recipe.attribute_weight,
            "rank": heads.rank_loss(written.cell_states, batch.ranks) * recipe.rank_weight,
        }

    @property
    def _location_ids(self) -> Tensor:
        return torch.tensor(self.parts.trainee.location_ids, device=self.device)

    def _make_optimizers(self) -> list[Optimizer]:
        parts: dict[str, list[nn.Module]] = {
            "vision": self.parts.trainee.vision_parts,
            "language": [self.parts.trainee.language_model],
            "heads": [self.heads],
        }
        embeddings = self.parts.trainee.embeddings
        muon_dtype = torch.bfloat16 if self.is_bfloat16 else torch.float32
        return make_optimizers(parts, embeddings, self.recipe.rates, muon_dtype)
