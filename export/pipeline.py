"""The steps of one export, in order."""

import shutil
from pathlib import Path
from typing import Any

from export.decoder_weights import write_decoder_weights
from export.jobs import ExportJob
from export.onnx_config import export_vision_encoder
from export.parity import check_parity
from export.probes import MAX_NEW_TOKENS, NUM_PROBES, make_probes
from export.reference import Reference
from export.store import new_version
from export.vision import ImageInput, VisionEncoderModule, read_image_input
from runners.artifacts import (
    CONFIG_FILE,
    DECODER_FILE,
    GENERATION_CONFIG_FILE,
    MANIFEST_FILE,
    MASK_DECODER_FILE,
    TOKENIZER_FILE,
    VISION_ENCODER_FILE,
    Manifest,
    sha256_of,
    write_manifest,
)

_COPIED_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def run_export(job: ExportJob) -> Manifest:
    """Make the artifacts of `job` and store them; raise `ExportError`, and store nothing, if they are not faithful."""
    with new_version(job.entry.id) as folder:
        return make_artifacts(job, folder)


def make_artifacts(
    job: ExportJob, folder: Path, num_probes: int = NUM_PROBES, max_new_tokens: int = MAX_NEW_TOKENS
) -> Manifest:
    """Make the artifacts of `job` in an empty folder and compare them with the original; raise `ExportError`."""
    reference = Reference.load(job.source.folder, job.precision)
    image_input = read_image_input(reference.processor.image_processor)
    module = VisionEncoderModule(reference.model, image_input)
    export_vision_encoder(module, image_input.size_wh, folder / VISION_ENCODER_FILE)
    write_decoder_weights(reference.model, folder / DECODER_FILE)
    _write_configuration(job, reference, folder)
    probes = make_probes(job.entry, image_input, num_probes, max_new_tokens)
    parity = check_parity(folder, job.entry.family, job.precision, reference, probes)
    manifest = _manifest(job, image_input, reference, folder, parity)
    write_manifest(folder, manifest)
    return manifest


def _write_configuration(job: ExportJob, reference: Reference, folder: Path) -> None:
    """Write the configurations with every default spelled out, as a checkpoint may leave them to transformers."""
    model = reference.model
    (folder / CONFIG_FILE).write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    model.generation_config.to_json_file(folder / GENERATION_CONFIG_FILE)
    for name in _COPIED_FILES:
        if (job.source.folder / name).is_file():
            shutil.copyfile(job.source.folder / name, folder / name)
    if job.mask_decoder is not None:
        shutil.copyfile(job.mask_decoder, folder / MASK_DECODER_FILE)


def _manifest(
    job: ExportJob, image_input: ImageInput, reference: Reference, folder: Path, parity: dict[str, Any]
) -> Manifest:
    return Manifest(
        model_id=job.entry.id,
        family=job.entry.family,
        source=job.source.name,
        revision=job.source.revision,
        build_key=job.build_key,
        precision=job.precision,
        image_size_wh=image_input.size_wh,
        resample=image_input.resample,
        num_image_tokens=reference.processor.image_processor.image_seq_length,
        hidden_size=reference.model.config.get_text_config().hidden_size,
        versions=job.versions,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE},
        parity=parity,
    )
