"""Train an embedded checkpoint from scratch: `python -m laboratory.training MODEL`.

A stopped run resumes; --restart discards it. The checkpoint is written at the end. By
torchrun, several processes share a run (see `runs/processes.py`).
"""

import argparse
import platform
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer

from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from laboratory.training.data.tokenizers import florence2_tokenizer, paligemma_tokenizer
from laboratory.training.masks.autoencoder import MaskAutoencoder
from laboratory.training.masks.training import (
    mask_codes,
    train_mask_autoencoder,
)
from laboratory.training.models import florence2, paligemma
from laboratory.training.models.initialization import initialize
from laboratory.training.runs.cell_heads import CellHeads
from laboratory.training.runs.loop import Training
from laboratory.training.runs.processes import await_processes, join_processes, process_index
from laboratory.training.runs.recipes import RECIPES, StageName
from laboratory.training.runs.results import draw_learning_curve, read_weights, write_checkpoint
from laboratory.training.runs.run_folder import RunFolder
from tasks.paligemma import MaskDecoder

_MODELS = ROOT / "models"
_MASK_DECODER = _MODELS / "paligemma-mini" / "vae.npz"
_TOKENIZERS = {"florence2": florence2_tokenizer, "paligemma": paligemma_tokenizer}


def make_training(model_id: str, folder: Path, device: str, seed: int) -> Training:
    """Return the run of a model with weights initialised from `seed`.

    The vocabulary is kept with the run, because another one would give its weights another meaning.
    """
    entry = find_entry(model_id)
    vocabulary = folder / "tokenizer.json"
    if vocabulary.exists():
        tokenizer = Tokenizer.from_file(str(vocabulary))
    else:
        make_tokenizer = _TOKENIZERS[entry.family]
        tokenizer = make_tokenizer(entry)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(vocabulary))
    torch.manual_seed(seed)
    if entry.family == "florence2":
        parts = florence2.make_parts(entry, tokenizer, florence2.MINI)
    else:
        parts = paligemma.make_parts(
            entry,
            tokenizer,
            paligemma.MINI,
            partial(mask_codes, MaskAutoencoder.load_npz(_MASK_DECODER)),
            MaskDecoder.load(_MASK_DECODER),
        )
    trainee = parts.trainee
    initialize(trainee)
    heads = CellHeads(trainee.embeddings.shape[1])
    trainee.to(device)
    return Training(
        parts,
        heads.to(device),
        RECIPES[model_id],
        RunFolder(folder),
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


def main() -> int:
    """Train one model and write its checkpoint; return the exit status."""
    parser = argparse.ArgumentParser("python -m laboratory.training", description=__doc__)
    add = parser.add_argument
    runs = ROOT / "build" / "training"
    add("model", choices=[*RECIPES, "mask-decoder"])
    add("--runs", type=Path, default=runs, help="default: %(default)s")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    refine = "start at --stage, with its weights and vocabulary"
    add("--refine", type=Path, metavar="CHECKPOINT", help=refine)
    add("--stage", choices=get_args(StageName), default="refining", help="default: %(default)s")
    add("--restart", action="store_true", help="discard the stored run")
    arguments = parser.parse_args()
    folder: Path = arguments.runs / arguments.model
    if arguments.restart:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.model == "mask-decoder":
        train_mask_autoencoder(_MASK_DECODER, folder, device=arguments.device)
        return 0
    join_processes()
    if process_index() > 0:
        await_processes()  # for the vocabulary and the state that the first one writes
    elif arguments.refine:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(arguments.refine / "tokenizer.json", folder)
    training = make_training(arguments.model, folder, arguments.device, 0)
    if process_index() == 0:
        if arguments.refine:
            training.begin(arguments.stage, read_weights(arguments.refine))
        await_processes()
    training.run()
    if process_index() > 0:
        return 0
    write_checkpoint(training.parts.trainee, _MODELS / arguments.model)
    draw_learning_curve(training.folder, _MODELS / arguments.model / "learning_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
