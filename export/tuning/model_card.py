"""The README.md of an adapter: what it was tuned on, how, how good it is, how it is served."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path

import yaml

from export.tuning.epochs import Epoch, kept_epoch, score_text, shown_line
from export.tuning.training import CURVE_FILE, TuningJob
from tasks.table import TASKS

_VERSIONS_OF = ("peft", "torch", "transformers")


def write_card(
    job: TuningJob, data: Path, left_out: str, epochs: Sequence[Epoch], entry_lines: str
) -> None:
    """Write the card in place of PEFT's, which has the same name and is empty."""
    base = job.entry
    options = job.options
    kept = kept_epoch(epochs)
    num_examples = sum(map(len, job.images))
    is_boxes = TASKS[job.task_id].result_kind == "detections"
    header = {
        "base_model": base.source,
        "library_name": "peft",
        "license": base.license,
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", job.task_id],
    }
    recipe = []
    for field in fields(options):
        recipe.append(f"| {field.name} | {getattr(options, field.name)} |")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS_OF]
    shown = [f"- {shown_line(each)}" for each in kept.score.shown]
    measured = "boxes at IoU 0.5" if is_boxes else "words"
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {job.output.resolve().name}",
        "",
        f"A LoRA adapter of `{base.id}` ({base.source}) for `{job.task_id}`, tuned on"
        f" {date.today()}.",
        "",
        "## Data",
        "",
        f"`{data.name}`: {num_examples} examples about {len(job.images)} images;"
        f" {left_out or 'nothing left out'}. The share {options.held_out_share} of the images was"
        " held out.",
        "",
        "## Quality",
        "",
        f"Epoch {kept.number} of {options.num_epochs} is kept: held-out loss"
        f" {kept.held_out_loss:.4f}, {score_text(kept.score)} of {measured}, with its 95 %"
        f" interval from 5 images on, on {kept.score.num_images} held-out images. The epoch was"
        " chosen on them: measure on other images with `diptych evaluate`.",
        "",
        *shown,
        "",
        f"![Losses and F1 by epoch]({CURVE_FILE})",
        "",
        "## Recipe",
        "",
        "| option | value |",
        "|---|---|",
        *recipe,
        "",
        f"{', '.join(versions)}.",
        "",
        "## Serve",
        "",
        "Put this folder into FOLDER and start Diptych with"
        f" `DIPTYCH_MODELS={base.id} DIPTYCH_ADAPTERS=FOLDER make serve`. Or add to"
        " `models/catalog.yaml`, export and serve both:",
        "",
        "```yaml",
        entry_lines.rstrip(),
        "```",
        "",
    ]
    (job.output / "README.md").write_text("\n".join(lines), encoding="utf-8")
