"""Prepare the models and questions of `make bench`: `python -m laboratory.bench.material FOLDER`.

Existing models are kept.

With `--short`, only checkpoints and questions of the embedded models, whose artifacts are those of
`make export`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from export.errors import ExportError
from laboratory.bench.material.encoder_graphs import write_encoder_graph
from laboratory.bench.material.models import (
    BENCH_MODELS,
    checkpoint_folder,
    encoder_graph_file,
    make_models,
    write_checkpoints,
)
from laboratory.bench.material.questions import NUM_SCENES, NUM_SHORT_SCENES, model_material


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare models and material; return the exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.bench.material", description=summary)
    add = parser.add_argument
    scales = ["embedded", "base"]
    add("folder", type=Path)
    add("--scales", nargs="+", choices=scales, default=scales)
    short = "for `python -m laboratory.bench --short`; exports nothing"
    add("--short", action="store_true", help=short)
    parsed = parser.parse_args(arguments)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        make_material(parsed.folder, parsed.scales, parsed.short)
    except ExportError as error:
        print(f"python -m laboratory.bench.material: {error}", file=sys.stderr)
        return 1
    return 0


def make_material(folder: Path, scales: Sequence[str], is_short: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    models = [model for model in BENCH_MODELS if model.scale in scales]
    if is_short:
        models = [model for model in models if model.scale == "embedded" and not model.is_endless]
        catalog = write_checkpoints(models, folder)
    else:
        catalog = make_models(models, folder)
        for model in models:
            write_encoder_graph(checkpoint_folder(model, folder), encoder_graph_file(model, folder))
    num_scenes = NUM_SCENES | ({"embedded": NUM_SHORT_SCENES} if is_short else {})
    material = [
        model_material(model, catalog[model.id], folder, num_scenes[model.scale])
        for model in models
    ]
    (folder / "material.json").write_text(json.dumps({"models": material}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
