"""Train an embedded checkpoint from scratch: `python -m laboratory.training MODEL`.

The weights of models/MODEL are replaced at the end; its configuration, vocabulary and image
processor stay. A stopped run resumes; --restart discards it.
"""

import argparse
import copy
import shutil
import sys
from pathlib import Path

import torch

from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from laboratory.training.examples import Language
from laboratory.training.loop import RECIPES, Training
from laboratory.training.losses import CellHeads
from laboratory.training.models import TRAINEES

_MODELS = ROOT / "models"


def make_training(model_id: str, folder: Path, device: str, seed: int) -> Training:
    """Return the run of a model with weights initialised from `seed`."""
    entry = find_entry(model_id)
    checkpoint = _MODELS / model_id
    torch.manual_seed(seed)
    trainee = TRAINEES[entry.family](checkpoint)
    return Training(
        trainee.to(device),
        Language.of(entry, checkpoint),
        CellHeads(trainee.embeddings.shape[1]).to(device),
        RECIPES[model_id],
        folder,
        device,
    )


def write_weights(training: Training, folder: Path) -> None:
    """Write the weights in half precision, with their configuration."""
    copy.deepcopy(training.trainee.model).to("cpu", torch.float16).save_pretrained(folder)


def main() -> int:
    """Train one model and write its checkpoint; return the exit status."""
    parser = argparse.ArgumentParser("python -m laboratory.training", description=__doc__)
    add = parser.add_argument
    add("model", choices=RECIPES)
    runs = ROOT / "build" / "training"
    add("--runs", type=Path, default=runs, help="default: %(default)s")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--restart", action="store_true", help="discard the stored run")
    arguments = parser.parse_args()
    folder: Path = arguments.runs / arguments.model
    if arguments.restart:
        shutil.rmtree(folder, ignore_errors=True)
    training = make_training(arguments.model, folder, arguments.device, seed=0)
    training.run()
    write_weights(training, _MODELS / arguments.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
