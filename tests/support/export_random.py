"""A random checkpoint of real widths, exported.

With fewer layers and probes than an export, and without photographs: real widths take seconds per
image.
"""

from dataclasses import replace
from pathlib import Path

from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from laboratory.bench.random_weights import write_random_checkpoint
from tests.support.export_cli import MODELS
from tests.support.fitting_entries import fitting
from tests.support.random_weights import SHAPES
from wire.artifacts.manifest import Manifest

PROBES = ProbePlan(2, 12)


def export_random(name: str, checkpoint: Path, artifacts: Path) -> Manifest:
    # Gemma 2 needs two layers: one with a sliding window and one without.
    write_random_checkpoint(SHAPES[name], checkpoint, max_layers=2 if "-2-3b" in name else 1)
    mask_decoder = MODELS / "paligemma-mini" / "vae.npz" if name.startswith("paligemma") else None
    options = ExportOptions(source=str(checkpoint), mask_decoder=mask_decoder)
    job = plan_job(find_entry(name), options)
    return make_artifacts(replace(fitting(job), photographs=()), artifacts, probe_plan=PROBES)
