"""Train an embedded checkpoint from scratch: `python -m export.training MODEL`.

A run that was stopped goes on; --restart begins anew. The checkpoint is written at the end, and with --export from
whatever the run has reached.
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

import torch

from export.training import florence2, paligemma
from export.training.cell_heads import CellHeads
from export.training.checkpoint import read_weights, write_checkpoint
from export.training.initialization import initialize
from export.training.learning_curve import draw_learning_curve
from export.training.loop import Training
from export.training.mask_training import train_mask_autoencoder
from export.training.recipes import RECIPES
from export.training.run_state import RunFolder
from tasks.catalog import load_catalog

_ROOT = Path(__file__).parents[2]
_MODELS = _ROOT / "models"
_MASK_DECODER = _MODELS / "paligemma-mini" / "vae.npz"


def make_training(model_id: str, folder: Path, device: str, seed: int) -> Training:
    """Return the run of a model, its weights drawn from `seed`."""
    entry = load_catalog(_MODELS / "catalog.yaml")[model_id]
    torch.manual_seed(seed)
    is_florence2 = entry.family == "florence2"
    parts = florence2.make_parts(entry) if is_florence2 else paligemma.make_parts(entry, _MASK_DECODER)
    trainee = parts.trainee
    initialize(trainee)
    heads = CellHeads(trainee.embeddings.shape[1])
    trainee.to(device)
    return Training(parts, heads.to(device), RECIPES[model_id], RunFolder(folder), device, has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    """Tell whether the device multiplies matrices of bfloat16 itself; without, a CPU is slower than in float32."""
    capabilities = torch.cpu.get_capabilities()
    return device.startswith("cuda") or any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def main() -> int:
    """Train one model, or export what its run has reached; return the exit status."""
    parser = argparse.ArgumentParser("python -m export.training", description=__doc__)
    parser.add_argument("model", choices=[*RECIPES, "mask-decoder"])
    parser.add_argument("--runs", type=Path, default=_ROOT / "build" / "training", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refine", type=Path, metavar="CHECKPOINT", help="begin at the last stage, with its weights")
    parser.add_argument("--joint-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--restart", action="store_true", help="forget the run so far")
    parser.add_argument(
        "--export", action="store_true", help="write the checkpoint as the run stands, without training"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder: Path = arguments.runs / arguments.model
    if arguments.restart:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.model == "mask-decoder":
        iou = train_mask_autoencoder(_MASK_DECODER, folder, seed=arguments.seed, device=arguments.device)
        print(f"{_MASK_DECODER}: IoU {iou:.3f} on masks not trained on")
        return 0
    training = make_training(arguments.model, folder, arguments.device, arguments.seed)
    if arguments.joint_steps:
        training.recipe = dataclasses.replace(training.recipe, joint_steps=arguments.joint_steps)
    if arguments.refine:
        training.begin_refining(read_weights(arguments.refine))
    if arguments.export:
        training.folder.restore([training.parts.trainee.model])
    else:
        training.run()
    write_checkpoint(training.parts.trainee, _MODELS / arguments.model)
    draw_learning_curve(training.folder, _MODELS / arguments.model / "learning_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
