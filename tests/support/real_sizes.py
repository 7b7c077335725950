"""`python -m tests.support.real_sizes NAME FOLDER`: a released model's full size with random
weights, exported as a user exports it; prints time and memory.

Florence-2 is written in Microsoft's form. `--decoder-layers N` keeps all vision layers and N of the
decoder: such a checkpoint is not the entry's, so its export takes the entry's numbers from it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from export.artifacts.store import new_version
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checkpoints.sources import WEIGHTS_FILE
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
from tests.support.export_cli import MODELS, ROOT
from tests.support.fitting_entries import fitting
from tests.support.microsoft_form import (
    NUM_ROWS,
    microsoft_config,
    microsoft_weights,
    update_json,
    write_microsoft_form,
)
from tests.support.random_weights import SHAPES, write_random_checkpoint

ALL_LAYERS = 99
_MODULE = "tests.support.real_sizes"  # __name__ is __main__ for the command
_MASK_DECODER = MODELS / "paligemma-mini" / "vae.npz"
_VISION_KEYS = ("depths", "num_groups", "num_heads", "projection_dim")
_STACK_KEYS = ("layers", "ffn_dim", "attention_heads")
_TEXT_KEYS = (
    "d_model",
    "max_position_embeddings",
    *(f"encoder_{each}" for each in _STACK_KEYS),
    *(f"decoder_{each}" for each in _STACK_KEYS),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory of an export; files that its processes map into memory are included."""

    seconds: float
    max_process_bytes: int
    printed: tuple[str, ...]

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{minutes} min {seconds} s, largest process {self.max_process_bytes / 1e9:.1f} GB"


def write_full_size(name: str, folder: Path, decoder_layers: int | None = None) -> None:
    """Write a random checkpoint of `name` into an empty folder."""
    if not name.startswith("florence"):
        write_random_checkpoint(name, folder, ALL_LAYERS, max_decoder_layers=decoder_layers)
        return
    plain = folder / "transformers"
    write_random_checkpoint(name, plain, ALL_LAYERS)
    write_microsoft_form(microsoft_weights(_parts(load_file(plain / WEIGHTS_FILE))), folder)
    _set_widths(folder, AutoConfig.from_pretrained(plain))
    for path in plain.iterdir():
        path.unlink()
    plain.rmdir()


def _parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the weights by part, with the rows of Microsoft's vocabulary and all tied copies."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        _, part, key = name.split(".", 2)
        parts.setdefault(part, {})[key] = tensor
    language = {f"model.{key}": tensor for key, tensor in parts["language_model"].items()}
    shared = language["model.shared.weight"][:NUM_ROWS]
    for key in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
        language[f"{key}.weight"] = shared
    language["lm_head.weight"] = shared
    language["final_logits_bias"] = torch.zeros(1, NUM_ROWS)
    return parts | {"language_model": language}


def _set_widths(folder: Path, config: Any) -> None:
    written = microsoft_config()
    vision = {key: getattr(config.vision_config, key) for key in _VISION_KEYS}
    text = {key: getattr(config.text_config, key) for key in _TEXT_KEYS}
    update_json(
        folder / "config.json",
        projection_dim=config.text_config.d_model,
        text_config=written["text_config"] | text | {"num_hidden_layers": text["decoder_layers"]},
        vision_config=written["vision_config"]
        | vision
        | {"dim_embed": config.vision_config.embed_dim},
    )


def export_full_size(name: str, checkpoint: Path, home: Path, is_cut: bool = False) -> Cost:
    """Export a checkpoint into the model store of `home` in a child process."""
    command = ["-m", "export", name, "--source", str(checkpoint)]
    if name.startswith("paligemma"):
        command += ["--mask-decoder", str(_MASK_DECODER)]
    if is_cut:
        command = [
            "-c",
            f"from {_MODULE} import export_cut; export_cut(*__import__('sys').argv[1:])",
        ]
        command += [name, str(checkpoint)]
    environment = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("OMP_NUM_THREADS", None)  # set by the tests
    start_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        written = output.read()
    _, status, usage = os.wait4(process.pid, 0)  # its children's included
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(written)
    seconds = time.monotonic() - start_s
    return Cost(seconds, usage.ru_maxrss * 1024, tuple(written.splitlines()))


def export_cut(name: str, checkpoint: str) -> None:
    """Export a checkpoint with fewer layers than its entry, with the entry's precisions."""
    options = ExportOptions(source=checkpoint, mask_decoder=_MASK_DECODER)
    job = fitting(plan_job(find_entry(name), options))
    with new_version(name) as folder, Progress(name, NUM_STEPS) as progress:
        make_artifacts(replace(job, photographs=()), folder, progress, is_large=True)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.support.real_sizes", description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--decoder-layers", type=int)
    arguments = parser.parse_args()
    checkpoint = arguments.folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    write_full_size(arguments.name, checkpoint, arguments.decoder_layers)
    cost = export_full_size(
        arguments.name,
        checkpoint,
        arguments.folder / "bentoml",
        is_cut=arguments.decoder_layers is not None,
    )
    print("\n".join(cost.printed), cost, sep="\n", flush=True)


if __name__ == "__main__":
    main()
