"""Trains the mask autoencoder from scratch on random masks.

    for step: masks -> codes -> fields -> squared error to 1 inside and -1 outside -> Muon and Adam

In the first steps the decoder receives the features themselves; then the codebook is fitted to them
(k-means) and follows them as a moving average. Rarely used rows are replaced by random features,
except in the last steps. A stopped run resumes from its folder: its masks depend only on the step's
number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam, Optimizer
from tqdm import tqdm

from laboratory.training.data.mask_samples import Masks, sample_masks
from laboratory.training.masks.autoencoder import MaskAutoencoder
from laboratory.training.runs.optimizer import Muon, cosine_factor, descend, set_rates
from laboratory.training.runs.run_folder import RunFolder

_NUM_STEPS = 900
_NUM_MASKS = 32  # per step
_MUON_RATE = 0.02
_ADAM_RATE = 2e-3
_WARM_UP_SHARE = 1 / 30  # share of the steps
_FLAT_SHARE = 0.3  # share of the steps, before cosine down to `_FINAL_RATE`
_FINAL_RATE = 0.02
_MAX_GRADIENT_NORM = 1.0
_COMMITMENT_WEIGHT = 0.25
_UNQUANTISED_SHARE = 0.08  # share of the steps: quantising from the start leaves most rows unused
_RESTART_SHARE = 0.8  # share of the steps
_RESTART_EVERY = 10
_MIN_CLUSTER_SIZE = 0.4  # features of a step's 512; 4 on average
_NUM_CLUSTERED_MASKS = 256
_SAVED_EVERY = 50
_NUM_HELD_OUT = 256
_HELD_OUT_SEED = 2**32  # no step has this number


@dataclass(frozen=True, slots=True)
class MaskScore:
    """The quality of reconstructed masks."""

    iou: float  # mean over the masks
    num_codes_used: int  # at most 128


@dataclass(slots=True)
class MaskTraining:
    """One run: the model, its length and its folder."""

    autoencoder: MaskAutoencoder
    folder: RunFolder
    num_steps: int
    seed: int
    device: str
    optimizers: Sequence[Optimizer] = ()
    step: int = 0

    def restore(self) -> None:
        """Resume at the step stored in the folder, or start at 0."""
        self.optimizers = _make_optimizers(self.autoencoder)
        self.step = self.folder.restore([self.autoencoder], self.optimizers)

    def run(self, last: int) -> None:
        """Train up to step `last` and store the state."""
        with tqdm(total=self.num_steps, initial=self.step, unit="step", smoothing=0.05) as bar:
            while self.step < last:
                figures = self._take_step()
                self.step += 1
                bar.update()
                bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
                self.folder.log({"step": self.step, **figures})
                if self.step % _SAVED_EVERY == 0 or self.step == last:
                    self.folder.save(self.step, [self.autoencoder], self.optimizers)

    def _take_step(self) -> dict[str, float]:
        progress = self.step / self.num_steps
        warm_up = min(1.0, (self.step + 1) / (_WARM_UP_SHARE * self.num_steps))
        set_rates(self.optimizers, warm_up * cosine_factor(progress, _FLAT_SHARE, _FINAL_RATE))
        rng = np.random.default_rng((self.seed, self.step))
        masks = torch.from_numpy(sample_masks(rng, _NUM_MASKS)).to(self.device)
        num_unquantised = int(_UNQUANTISED_SHARE * self.num_steps)
        if self.step == num_unquantised:
            clustered = torch.from_numpy(sample_masks(rng, _NUM_CLUSTERED_MASKS)).to(self.device)
            with torch.no_grad():
                features = self.autoencoder.features(clustered).flatten(0, 1)
            order = torch.from_numpy(rng.permutation(len(features)))
            self.autoencoder.codebook.fit(features[order])
        if self.step < num_unquantised:
            fields = self.autoencoder.fields(self.autoencoder.features(masks))
            commitment_loss = torch.zeros(())
            num_used = 0
        else:
            fields, commitment_loss, num_used = self._quantised(masks, rng)
        loss = functional.mse_loss(fields, 2 * masks[:, 0] - 1)
        total = loss + _COMMITMENT_WEIGHT * commitment_loss
        descend(total, [self.autoencoder], self.optimizers, _MAX_GRADIENT_NORM)
        return {"loss": loss.item(), "iou": _iou(fields, masks), "codes": num_used}

    def _quantised(self, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, int]:
        """Return fields, commitment loss and number of used codes of masks; update the codebook."""
        made = self.autoencoder(masks)
        features = made.features.detach().flatten(0, 1)
        codes = made.codes.flatten()
        codebook = self.autoencoder.codebook
        codebook.follow(features, codes)
        if self.step % _RESTART_EVERY == 0 and self.step < _RESTART_SHARE * self.num_steps:
            codebook.restart(
                features[torch.from_numpy(rng.permutation(len(features)))], _MIN_CLUSTER_SIZE
            )
        return made.fields, made.commitment_loss, _num_used(codes)


def train_mask_autoencoder(
    out: Path,
    folder: Path,
    num_steps: int = _NUM_STEPS,
    seed: int = 0,
    device: str = "cpu",
) -> float:
    """Train or resume the run in `folder`, write `out` and return the IoU on held-out masks."""
    torch.manual_seed(seed)
    training = MaskTraining(
        MaskAutoencoder().to(device), RunFolder(folder), num_steps, seed, device
    )
    training.restore()
    if training.step >= num_steps:
        tqdm.write(f"{folder} has a finished run of {training.step} steps")
    training.run(num_steps)
    training.autoencoder.save_npz(out)
    score = score_masks(MaskAutoencoder.load_npz(out), held_out_masks())
    tqdm.write(f"{out}: IoU {score.iou:.3f}, {score.num_codes_used} codes used, held-out masks")
    return score.iou


def held_out_masks() -> Tensor:
    """Return masks (B, 1, 64, 64) that no run is trained on."""
    return torch.from_numpy(sample_masks(np.random.default_rng(_HELD_OUT_SEED), _NUM_HELD_OUT))


def score_masks(autoencoder: MaskAutoencoder, masks: Tensor) -> MaskScore:
    """Return the quality of masks (B, 1, 64, 64) after encoding and decoding."""
    codes = autoencoder.encode(masks)
    return MaskScore(_iou(autoencoder.decode(codes), masks), _num_used(codes))


def mask_codes(autoencoder: MaskAutoencoder, mask: Masks) -> tuple[int, ...]:
    """Return the 16 codes of a mask (64, 64)."""
    return tuple(autoencoder.encode(torch.from_numpy(mask)[None, None])[0].tolist())


def _num_used(codes: Tensor) -> int:
    return int((torch.bincount(codes.flatten()) > 0).sum())


def _iou(fields: Tensor, masks: Tensor) -> float:
    """Return the mean IoU of fields (B, 64, 64) and masks (B, 1, 64, 64)."""
    ours = fields > 0
    theirs = masks[:, 0] > 0.5
    return ((ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))).mean().item()


def _make_optimizers(autoencoder: MaskAutoencoder) -> list[Optimizer]:
    """Return Muon for the convolutions between several channels and Adam for the rest."""
    matrices = [p for p in autoencoder.parameters() if p.ndim == 4 and 1 not in p.shape[:2]]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in autoencoder.parameters() if id(parameter) not in taken]
    return [
        Muon([{"params": matrices, "top": _MUON_RATE}]),
        Adam([{"params": others, "top": _ADAM_RATE}], betas=(0.9, 0.98)),
    ]
