"""Train an embedded checkpoint from scratch: `python -m laboratory.training MODEL`.

The weights of models/MODEL are replaced at the end; its configuration, vocabulary and image
processor stay. A stopped run resumes; --restart discards it.
"""

import argparse
import copy
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from laboratory.training.loop import RECIPES, Training
from laboratory.training.losses import CellHeads
from laboratory.training.masks import MaskAutoencoder, train_mask_autoencoder
from laboratory.training.models import make_language, make_trainee

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types

_MODELS = ROOT / "models"
_MASK_DECODER = _MODELS / "paligemma-mini" / "vae.npz"


def make_training(model_id: str, folder: Path, device: str, seed: int) -> Training:
    """Return the run of a model with weights initialised from `seed`."""
    entry = find_entry(model_id)
    checkpoint = _MODELS / model_id
    torch.manual_seed(seed)
    trainee = make_trainee(entry, checkpoint)
    encode_shape = MaskAutoencoder.load_npz(_MASK_DECODER).shape_codes
    return Training(
        trainee.to(device),
        make_language(entry, checkpoint, encode_shape),
        CellHeads(trainee.embeddings.shape[1]).to(device),
        RECIPES[model_id],
        folder,
        device,
        has_bfloat16(device),
    )


def has_bfloat16(device: str) -> bool:
    """Return True if the device has bfloat16 instructions; without them, bfloat16 is slower than
    float32 on a CPU.
    """
    if device.startswith("cuda"):
        return True
    if platform.machine() == "aarch64":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def write_weights(training: Training, folder: Path) -> None:
    """Write the weights in half precision, with their configuration."""
    model = copy.deepcopy(training.trainee.model).to("cpu", torch.float16)
    model.save_pretrained(folder)


def main() -> int:
    """Train one model and write its checkpoint; return the exit status."""
    parser = argparse.ArgumentParser("python -m laboratory.training", description=__doc__)
    add = parser.add_argument
    add("model", choices=[*RECIPES, "mask-decoder"])
    runs = ROOT / "build" / "training"
    add("--runs", type=Path, default=runs, help="default: %(default)s")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    refine = "start at the last stage, with its weights"
    add("--refine", type=Path, metavar="CHECKPOINT", help=refine)
    add("--restart", action="store_true", help="discard the stored run")
    arguments = parser.parse_args()
    if arguments.model == "mask-decoder":
        train_mask_autoencoder(_MASK_DECODER, device=arguments.device)
        return 0
    folder: Path = arguments.runs / arguments.model
    if arguments.restart:
        shutil.rmtree(folder, ignore_errors=True)
    training = make_training(arguments.model, folder, arguments.device, seed=0)
    if arguments.refine:
        model = _Model.from_pretrained(arguments.refine, dtype=torch.float32)
        training.refine(model.state_dict())
    training.run()
    write_weights(training, _MODELS / arguments.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
