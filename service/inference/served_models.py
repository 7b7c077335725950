"""Loads the served models, in catalog order: entries, manifests, calibrations and proofs."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runners.options import RunnerOptions, SchedulerLimits, max_default_slots
from service.errors import InvalidRequest
from service.inference.models import (
    ENGINE_PRECISION,
    Calibrations,
    EngineModel,
    RunnerModel,
    ServedModel,
    ServedProof,
)
from service.inference.request_fields import PredictFields, parse_fields
from service.settings import BYTES_PER_MB, Settings, SettingsError, variable
from tasks.catalog import (
    HUB_PREFIX,
    HUB_SEPARATOR,
    CatalogEntry,
    Engine,
    Precision,
    load_catalog,
    parse_entry,
)
from tasks.errors import CheckpointFileError, meant, shown
from tasks.florence2 import read_banned_phrases
from tasks.paligemma import MaskDecoder
from tasks.scores import Calibration, Proof, calibration_key, read_calibrations, read_proofs
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    ENTRY_FILE,
    MASK_DECODER_FILE,
    PROCESSOR_CONFIG_FILE,
    ArtifactError,
    Manifest,
    choose_precision,
    measured_agreement,
    read_manifest,
)
from wire.artifacts.model_store import artifact_folder, check_base

logger = logging.getLogger(__name__)

_INT8 = ("int8", "encoder int8")


def served_entries(settings: Settings) -> tuple[CatalogEntry, ...]:
    catalog = load_catalog(settings.catalog, settings.models)
    remote = {} if settings.remote_models is None else load_catalog(settings.remote_models)
    for entry in remote.values():
        if entry.has_runner or entry.id in catalog:
            rule = "must be of the family openai, with an id that the catalog does not have"
            raise SettingsError(f"DIPTYCH_REMOTE_MODELS: {entry.id} {rule}")
    for model_id in settings.models:
        if model_id not in catalog:
            catalog[model_id] = _stored_entry(model_id, catalog)
    served = tuple(entry for entry in catalog.values() if entry.id in settings.models)
    served += tuple(remote.values())
    for entry in served:
        if entry.adapter_of not in (None, *settings.models):
            raise SettingsError(
                f"DIPTYCH_MODELS has {entry.id}, an adapter of {entry.adapter_of}; add"
                f" {entry.adapter_of}"
            )
        for name in ("runner_urls", "devices"):
            models = [pair.partition("=")[0] for pair in getattr(settings, name)]
            if entry.adapter_of is not None and entry.id in models:
                problem = f"{variable(name)} names {entry.id}, an adapter"
                raise SettingsError(f"{problem}; name its base {entry.adapter_of} instead")
    return served


def _stored_entry(model_id: str, catalog: Iterable[str]) -> CatalogEntry:
    """Return the entry that the export of `hf:owner/name` has stored with the artifacts."""
    try:
        if HUB_SEPARATOR not in model_id:
            raise ArtifactError("only the models of repositories are stored with their entry")
        stored = (artifact_folder(model_id) / ENTRY_FILE).read_text(encoding="utf-8")
        return parse_entry(json.loads(stored))
    except (ArtifactError, OSError, ValueError) as error:
        problem = f"unknown model {model_id!r}{meant(model_id, catalog)}"
        hint = f"export a repository of the hub first: python -m export {HUB_PREFIX}owner/name"
        raise SettingsError(
            f"DIPTYCH_MODELS: {problem}; the catalog has {', '.join(catalog)}; {hint}"
        ) from error


def local_models(entries: Iterable[CatalogEntry], settings: Settings) -> list[str]:
    """Return the models whose runners are processes of this host."""
    models: list[str] = []
    for entry in entries:
        loads_weights = entry.has_runner and entry.adapter_of is None
        if loads_weights and settings.runner_url(entry.id) is None:
            models.append(entry.id)
    return models


def adapters_of(model_id: str, entries: Iterable[CatalogEntry]) -> tuple[str, ...]:
    return tuple(entry.id for entry in entries if entry.adapter_of == model_id)


def runner_options(
    model_id: str, settings: Settings, entries: Sequence[CatalogEntry]
) -> RunnerOptions:
    device, gpu = settings.device_of(model_id)
    local_devices = map(settings.device_of, local_models(entries, settings))
    cards = [local_gpu or 0 for kind, local_gpu in local_devices if kind != "cpu"]  # 0: default
    aliases = {entry.id: entry.aliases for entry in entries}
    return RunnerOptions(
        limits=SchedulerLimits(
            num_slots=settings.decoder_max_batch_size,
            stuck_after_s=settings.stuck_after_s,
        ),
        max_batch_size=settings.encoder_max_batch_size,
        max_cache_bytes=settings.vision_cache_mb * BYTES_PER_MB,
        max_positions=settings.decoder_max_positions,
        encoder_threads=settings.encoder_threads,
        decoder_threads=settings.decoder_threads,
        device=device,
        gpu=gpu,
        encoder_precision=settings.encoder_precision,
        decoder_precision=settings.decoder_precision,
        timeout_s=settings.call_timeout_s,
        otlp_endpoint=settings.otlp_endpoint,
        encoder_provider=settings.encoder_provider,
        adapters=adapters_of(model_id, entries),
        adapters_folder=settings.adapters,
        aliases=aliases.get(model_id, ()),
        start_timeout_s=settings.start_timeout_s,
        num_sharing_gpu=max(1, cards.count(gpu or 0)),
    )


def max_slots(settings: Settings) -> int:
    """Return the maximum number of sequences that a decoder generates at a time."""
    devices = [settings.device_of(model_id)[0] for model_id in settings.models]
    default_slots = max(max_default_slots(device) for device in (settings.device, *devices))
    return settings.decoder_max_batch_size or default_slots


def unserved_models(settings: Settings) -> list[tuple[CatalogEntry, str]]:
    """Return the other models of the catalog, with their default precisions on this host."""
    unserved: list[tuple[CatalogEntry, str]] = []
    for entry in load_catalog(settings.catalog).values():
        if entry.id not in settings.models:
            encoder = entry.precision[encoder_device(settings.device)]["encoder"]
            decoder = entry.precision[decoder_device(settings.device)]["decoder"]
            precision = _as_text(encoder, decoder) if entry.has_runner else ENGINE_PRECISION
            unserved.append((entry, precision))
    return unserved


def load_served_models(settings: Settings) -> dict[str, ServedModel]:
    models: dict[str, ServedModel] = {}
    bases: dict[str, RunnerModel] = {}
    for entry in served_entries(settings):  # a base comes before its adapters
        if entry.engine:
            models[entry.id] = engine_model(entry, entry.engine, settings)
            continue
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        if entry.adapter_of is None:
            models[entry.id] = bases[entry.id] = base_model(entry, manifest, folder, settings)
        else:
            base = bases[entry.adapter_of]
            check_base(manifest, base.manifest)
            models[entry.id] = adapter_model(entry, manifest, folder, base, settings)
    return models


def base_model(
    entry: CatalogEntry, manifest: Manifest, folder: Path, settings: Settings
) -> RunnerModel:
    masks = folder / MASK_DECODER_FILE
    precisions = chosen_precisions(manifest, settings)
    precision = _as_text(*precisions)
    calibrations, proofs = served_scoring(manifest, folder, settings, precision)
    return RunnerModel(
        entry=entry,
        manifest=manifest,
        precision=precision,
        mask_decoder=MaskDecoder.load(masks) if masks.exists() else None,
        banned_phrases=read_banned_phrases(folder / PROCESSOR_CONFIG_FILE),
        agreement=measured_agreement(manifest, *precisions),
        calibrations=calibrations,
        proofs=proofs,
    )


def adapter_model(
    entry: CatalogEntry, manifest: Manifest, folder: Path, base: RunnerModel, settings: Settings
) -> RunnerModel:
    """Return an adapter as a model; one with a vision encoder may run it in another precision."""
    precision = served_precision(manifest, settings) if manifest.has_encoder else base.precision
    calibrations, proofs = served_scoring(manifest, folder, settings, precision)
    return replace(
        base,
        entry=entry,
        manifest=manifest,
        precision=precision,
        agreement=None,
        calibrations=calibrations,
        proofs=proofs,
    )


def engine_model(entry: CatalogEntry, engine: Engine, settings: Settings) -> EngineModel:
    model = EngineModel(entry=entry, engine=engine)
    calibrations, proofs = _read_scoring(model.id, model.checkpoint, model.precision, settings)
    return replace(model, calibrations=calibrations, proofs=proofs)


def served_scoring(
    manifest: Manifest, folder: Path, settings: Settings, precision: str
) -> tuple[Calibrations, tuple[ServedProof, ...]]:
    """Return the calibrations and proofs of a runner's model; raise `SettingsError`."""
    own_files = [folder / CALIBRATION_FILE] if CALIBRATION_FILE in manifest.files else []
    return _read_scoring(manifest.model_id, manifest.checkpoint, precision, settings, own_files)


def _read_scoring(
    model_id: str,
    checkpoint: str,
    precision: str,
    settings: Settings,
    own_files: Sequence[Path] = (),
) -> tuple[Calibrations, tuple[ServedProof, ...]]:
    """Return the calibration of each task, without and with tiles, and the proofs about scores.

    Calibrations of the settings replace those of the artifacts. Raise `SettingsError` for an
    invalid file, or one of another checkpoint of the model. Features at int8 are not compared with
    others.
    """
    if settings.calibration == ("off",):
        return {}, ()
    files = [*own_files, *(Path(file) for file in settings.calibration)]
    calibrations: dict[tuple[str, bool], Calibration] = {}
    proofs: list[Proof] = []
    try:
        for file in files:
            for calibration in read_calibrations(file):
                if calibration.model == model_id:
                    calibrations[calibration.task, calibration.with_tiles] = calibration
            proofs += [proof for proof in read_proofs(file) if proof.model == model_id]
    except CheckpointFileError as error:
        raise SettingsError(f"DIPTYCH_CALIBRATION: {error}") from error
    for key, calibration in calibrations.items():
        images = calibration.images
        if images and images.precision.startswith(_INT8) != precision.startswith(_INT8):
            logger.warning("images of %s are unknown: statistics of %s", key[0], images.precision)
            calibrations[key] = replace(calibration, images=None)
        if calibration.checkpoint != checkpoint:
            about = f"the calibration of {model_id} for {calibration.task}"
            raise _stale(about, "checkpoint", calibration.checkpoint, checkpoint)
    served = {
        "checkpoint": checkpoint,
        "precision": precision,
        "calibration": calibration_key(calibrations),
    }
    return calibrations, tuple(_served_proof(proof, served) for proof in proofs)


def _served_proof(proof: Proof, served: Mapping[str, str]) -> ServedProof:
    """Raise `SettingsError` for a proof of another checkpoint, precision or calibration."""
    about = f"the proof of {proof.model} for {proof.fields['task']}"
    for name, value in served.items():
        if getattr(proof, name) != value:
            raise _stale(about, name, getattr(proof, name), value)
    try:
        _, request = parse_fields(PredictFields, proof.fields)
    except InvalidRequest as error:
        problem = f"{about} has invalid fields: {error.message}"
        raise SettingsError(f"DIPTYCH_CALIBRATION: {problem}") from error
    return ServedProof(proof, request)


def _stale(about: str, name: str, value: str, served: str) -> SettingsError:
    problem = f"{about} is of the {name} {shown(value)}; the one served is {served!r}"
    return SettingsError(f"DIPTYCH_CALIBRATION: {problem}: make it again, or remove it")


def chosen_precisions(manifest: Manifest, settings: Settings) -> tuple[Precision, Precision]:
    """Return the precisions of encoder and decoder in the runner; raise `ArtifactError`."""
    device, _ = settings.device_of(manifest.adapter_of or manifest.model_id)
    encoder_on = encoder_device(device)
    decoder_on = decoder_device(device)
    return (
        choose_precision(manifest, "encoder", encoder_on, settings.encoder_precision),
        choose_precision(manifest, "decoder", decoder_on, settings.decoder_precision),
    )


def served_precision(manifest: Manifest, settings: Settings) -> str:
    """Return the precisions of encoder and decoder as they are listed; raise `ArtifactError`."""
    return _as_text(*chosen_precisions(manifest, settings))


def _as_text(encoder: Precision, decoder: Precision) -> str:
    return encoder if encoder == decoder else f"encoder {encoder}, decoder {decoder}"
