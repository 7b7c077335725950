"""The steps of one export, in order: decoder weights, vision encoder, configuration, checks,
manifest.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from export.artifacts.encoders import make_encoders
from export.artifacts.vision_module import ImageInput, read_image_input
from export.checkpoints.bases import CheckpointFacts, is_hub_entry
from export.checkpoints.jobs import ExportJob
from export.checkpoints.sources import in_transformers_form
from export.checkpoints.tensors import (
    CheckpointTensors,
    check_vocabulary,
    silence_transformers,
    write_decoder_weights,
)
from export.checks.answers import AnswerCheck, agreeing_defaults
from export.checks.parity import (
    Probe,
    ProbePlan,
    ReferenceAnswers,
    make_probes,
    measure,
    run_reference,
)
from export.checks.reference import Reference, load_processor
from export.resources import MAX_RESIDENT_BYTES
from tasks.catalog import entry_row
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    ENTRY_FILE,
    GENERATION_CONFIG_FILE,
    MANIFEST_FILE,
    MASK_DECODER_FILE,
    TOKENIZER_FILE,
    Device,
    Manifest,
    Part,
    Precision,
    sha256_of,
    write_manifest,
)

logger = logging.getLogger(__name__)

_COPIED_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)


def make_artifacts(
    job: ExportJob, folder: Path, is_large: bool = False, probe_plan: ProbePlan | None = None
) -> Manifest:
    """Make the artifacts in an empty folder and compare them; raise `ExportError`."""
    silence_transformers()
    with in_transformers_form(job.source) as source:
        return _make_artifacts(replace(job, source=source), folder, is_large, probe_plan)


def _make_artifacts(
    job: ExportJob, folder: Path, is_large: bool, probe_plan: ProbePlan | None
) -> Manifest:
    checkpoint = job.source.folder
    logger.info(f"{job.entry.id}: writing the decoder's weights")
    tensors = CheckpointTensors.open(checkpoint)
    check_vocabulary(checkpoint, tensors)
    tensors.check_tied()
    image_input = read_image_input(load_processor(checkpoint).image_processor)
    side_px, _ = image_input.size_wh
    facts = CheckpointFacts(tensors.num_parameters, tensors.context_window, side_px)
    if is_hub_entry(job.entry):
        job = replace(job, entry=facts.applied_to(job.entry))
        (folder / ENTRY_FILE).write_text(json.dumps(entry_row(job.entry)), encoding="utf-8")
    else:
        facts.check(job.entry, job.source.name)
    write_decoder_weights(tensors, folder / DECODER_FILE)
    precisions: dict[Part, tuple[Precision, ...]] = {}
    for part in get_args(Part):
        defaults = map(itemgetter(part), job.entry.precision.values())
        precisions[part] = tuple(dict.fromkeys(["float32", "int8", *defaults]))
    logger.info("making the vision encoders")
    make_encoders(checkpoint, image_input, precisions["encoder"], folder, in_child=is_large)
    logger.info("running the checkpoint in transformers")
    probes = make_probes(job.entry, image_input, probe_plan)
    draft, expected = _run_reference(job, folder, image_input, probes, is_large)
    parity = measure(folder, job.entry, precisions, probes, expected, is_large)
    logger.info("comparing the precisions' answers")
    check = AnswerCheck.of(job, folder, draft, is_large)
    runs = check.measure({part: tuple(parity[part]) for part in precisions})
    defaults_measured = measured_defaults(job.entry.precision, parity)
    manifest = replace(
        draft,
        files=file_hashes(folder),
        precision=agreeing_defaults(job.entry.id, defaults_measured, runs),
        parity=parity | {"answers": {"decided_by": check.kind, "runs": list(map(asdict, runs))}},
    )
    write_manifest(folder, manifest)
    return manifest


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of an artifact folder, without its manifest."""
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    hashes.pop(MANIFEST_FILE, None)
    return hashes


def _run_reference(
    job: ExportJob, folder: Path, image_input: ImageInput, probes: Sequence[Probe], is_large: bool
) -> tuple[Manifest, ReferenceAnswers]:
    """Write the configuration, answer the probes, and free the model; return a draft manifest."""
    checkpoint = job.source.folder
    if is_large:
        reference = Reference.stream(checkpoint, MAX_RESIDENT_BYTES)
    else:
        reference = Reference.load(checkpoint)
    write_configuration(job, reference, folder)
    manifest = Manifest(
        model_id=job.entry.id,
        family=job.entry.family,
        source=job.source.name,
        revision=job.source.revision,
        build_key=job.build_key,
        checkpoint=job.checkpoint,
        precision=job.entry.precision,
        image_size_wh=image_input.size_wh,
        resample=image_input.resample,
        num_image_tokens=reference.processor.image_processor.image_seq_length,
        hidden_size=reference.model.config.get_text_config().hidden_size,
        versions=job.versions,
        files={},
        parity={},
    )
    return manifest, run_reference(reference, probes)


def measured_defaults(
    defaults: Mapping[Device, Mapping[Part, Precision]], parity: Mapping[str, Any]
) -> dict[Device, dict[Part, Precision]]:
    """Return the default precisions, with float32 for those that the measurements left out."""
    measured: dict[Device, dict[Part, Precision]] = {}
    for device, parts in defaults.items():
        measured[device] = dict(parts)
        for part, precision in parts.items():
            if precision not in parity[part]:
                measured[device][part] = "float32"
    return measured


def write_configuration(job: ExportJob, reference: Reference, folder: Path) -> None:
    """Write configurations with all defaults, because a checkpoint may omit transformers'."""
    model = reference.model
    # transformers' value is the path of the checkpoint on this machine
    model.config.name_or_path = job.entry.id
    (folder / CONFIG_FILE).write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    model.generation_config.to_json_file(folder / GENERATION_CONFIG_FILE)
    copies = {MASK_DECODER_FILE: job.mask_decoder, CALIBRATION_FILE: job.calibration}
    for name in _COPIED_FILES:
        copies[name] = job.source.folder / name
    for name, path in copies.items():
        if path is not None and path.is_file():
            shutil.copyfile(path, folder / name)
