"""The steps of one export, in order."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.decoder_weights import write_decoder_weights
from export.encoder_precisions import write_at_precision
from export.jobs import ExportJob
from export.measurements import measure
from export.onnx_config import export_vision_encoder
from export.parity import ask_reference
from export.probes import MAX_NEW_TOKENS, NUM_PROBES, make_probes
from export.reference import Reference, load_checkpoint, stored_dtype
from export.store import new_version
from export.vision import ImageInput, VisionEncoderModule, read_image_input
from runners.artifacts.manifest import (
    CONFIG_FILE,
    DECODER_FILE,
    GENERATION_CONFIG_FILE,
    MANIFEST_FILE,
    MASK_DECODER_FILE,
    TOKENIZER_FILE,
    Manifest,
    Part,
    Precision,
    sha256_of,
    vision_encoder_file,
    write_manifest,
)
from tasks.catalog import CatalogEntry

_COPIED_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def run_export(job: ExportJob) -> Manifest:
    """Make the artifacts of `job` and store them; raise `ExportError`, and store nothing, if they are not faithful."""
    with new_version(job.entry.id) as folder:
        return make_artifacts(job, folder)


def make_artifacts(
    job: ExportJob, folder: Path, num_probes: int = NUM_PROBES, max_new_tokens: int = MAX_NEW_TOKENS
) -> Manifest:
    """Make the artifacts of `job` in an empty folder and compare them with the original; raise `ExportError`."""
    write_decoder_weights(load_checkpoint(job.source.folder, stored_dtype(job.source.folder)), folder / DECODER_FILE)
    reference = Reference.load(job.source.folder)
    image_input = read_image_input(reference.processor.image_processor)
    precisions = _precisions(job.entry)
    _write_encoders(reference, image_input, precisions["encoder"], folder)
    _write_configuration(job, reference, folder)
    sizes = _sizes(reference)
    probes = make_probes(job.entry, image_input, num_probes, max_new_tokens)
    expected = ask_reference(reference, probes)
    del reference
    parity = measure(folder, job.entry, precisions, probes, expected)
    for precision in set(precisions["encoder"]) - {"float32", *parity["encoder"]}:
        (folder / vision_encoder_file(precision)).unlink()
    manifest = _manifest(job, image_input, sizes, folder, parity)
    write_manifest(folder, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class _Sizes:
    num_image_tokens: int
    hidden_size: int


def _sizes(reference: Reference) -> _Sizes:
    hidden_size = reference.model.config.get_text_config().hidden_size
    return _Sizes(reference.processor.image_processor.image_seq_length, hidden_size)


def _precisions(entry: CatalogEntry) -> dict[Part, tuple[Precision, ...]]:
    """Return what each part is measured in: float32, int8, and whatever is the default of a device."""
    parts: tuple[Part, ...] = ("encoder", "decoder")
    named = {part: [of_device[part] for of_device in entry.precision.values()] for part in parts}
    return {part: tuple(dict.fromkeys(["float32", "int8", *named[part]])) for part in parts}


def _write_encoders(
    reference: Reference, image_input: ImageInput, precisions: Sequence[Precision], folder: Path
) -> None:
    module = VisionEncoderModule(reference.model, image_input)
    export_vision_encoder(module, image_input.size_wh, folder / vision_encoder_file("float32"))
    for precision in precisions:
        write_at_precision(folder, precision, reference.model.config)


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


def _manifest(job: ExportJob, image_input: ImageInput, sizes: _Sizes, folder: Path, parity: dict[str, Any]) -> Manifest:
    return Manifest(
        model_id=job.entry.id,
        family=job.entry.family,
        source=job.source.name,
        revision=job.source.revision,
        build_key=job.build_key,
        precision=job.entry.precision,
        image_size_wh=image_input.size_wh,
        resample=image_input.resample,
        num_image_tokens=sizes.num_image_tokens,
        hidden_size=sizes.hidden_size,
        versions=job.versions,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE},
        parity=parity | {"accuracy": job.record and asdict(job.record)},
    )
