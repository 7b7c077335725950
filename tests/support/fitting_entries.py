"""The entries of released models, with the numbers of the small checkpoints that stand in for
them.
"""

from dataclasses import replace

from export.artifacts.vision_module import read_image_input
from export.checkpoints.forms import in_transformers_form
from export.checkpoints.jobs import ExportJob
from export.checkpoints.tensors import CheckpointTensors
from export.checks.reference import load_processor
from export.pipeline import facts_of


def fitting(job: ExportJob) -> ExportJob:
    """Return the job with an entry that its checkpoint agrees with."""
    with in_transformers_form(job.source) as source:
        tensors = CheckpointTensors.open(source.folder)
        image_input = read_image_input(load_processor(source.folder).image_processor)
    return replace(job, entry=facts_of(tensors, image_input).applied_to(job.entry))
