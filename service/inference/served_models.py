"""The served models: catalog entries with manifests, calibrations and proofs, in catalog order.

A proof holds for the requests with the fields with which it was made: the task, its parameters,
and what decides the answer, but not the form of masks.
"""

import json
import logging
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runners.options import RunnerOptions, SchedulerLimits, max_default_slots
from service.errors import InvalidRequest, ServiceError
from service.inference.request_fields import (
    GenerationFields,
    PredictFields,
    TaskRequest,
    parse_fields,
)
from service.settings import BYTES_PER_MB, Settings, SettingsError, variable
from tasks.catalog import (
    HUB_PREFIX,
    HUB_SEPARATOR,
    CatalogEntry,
    Precision,
    load_catalog,
    parse_entry,
)
from tasks.errors import CheckpointFileError, meant, shown
from tasks.families import FAMILIES, FamilyLanguage
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
    key_of_hashes,
    measured_agreement,
    read_manifest,
)
from wire.artifacts.model_store import artifact_folder, check_base

# keyed by task, and whether the image is asked about in tiles
Calibrations = Mapping[tuple[str, bool], Calibration]

logger = logging.getLogger(__name__)

_INT8 = ("int8", "encoder int8")
_OF_ENGINE = "of its engine"  # in place of a precision
_ENGINE_IMAGE_TOKENS = 1024  # an estimate, for the cost of a request
_UNDECIDING = {"mask_format", "min_score", "min_precision"}
_DECIDING = tuple(name for name in GenerationFields.model_fields if name not in _UNDECIDING)


@dataclass(frozen=True, slots=True)
class ServedProof:
    """A proof, and the request that it is about."""

    proof: Proof
    request: TaskRequest

    def covers(self, request: TaskRequest) -> bool:
        """Return True if a request differs from the proved one only in its image."""
        if request.parameters != self.request.parameters:
            return False
        deciding = operator.attrgetter(*_DECIDING)
        return bool(deciding(request.fields) == deciding(self.request.fields))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A served model: its catalog entry, manifest and mask decoder."""

    entry: CatalogEntry
    manifest: Manifest
    mask_decoder: MaskDecoder | None
    precision: str  # encoder's and decoder's, as text
    banned_phrases: frozenset[str] = frozenset()
    # measured by the export: its answers against those of float32
    agreement: Mapping[str, Any] | None = None
    calibrations: Calibrations = field(default_factory=dict)
    proofs: tuple[ServedProof, ...] = ()

    id: str = field(init=False)
    language: FamilyLanguage = field(init=False)  # prompts and parsers of its family
    runner_id: str = field(init=False)  # the model whose runner answers: an adapter's base
    adapter_key: str | None = field(init=False)  # names an adapter at the runner of its base

    def __post_init__(self) -> None:
        is_adapter = self.entry.adapter_of is not None
        object.__setattr__(self, "id", self.entry.id)
        object.__setattr__(self, "language", FAMILIES[self.entry.family])
        object.__setattr__(self, "runner_id", self.entry.adapter_of or self.entry.id)
        object.__setattr__(self, "adapter_key", self.manifest.build_key if is_adapter else None)

    def min_object_share(self, task_id: str) -> float:
        """Return the size that the model finds, by default a token's, as a share of a side."""
        calibration = self.calibrations.get((task_id, False))
        measured = None if calibration is None else calibration.min_object_share
        return measured or 1 / math.isqrt(self.manifest.num_image_tokens)


class ServedModels:
    """All served models by id; `unserved`: the others of the catalog, with their precisions."""

    def __init__(
        self, models: Mapping[str, ServedModel], unserved: Sequence[tuple[CatalogEntry, str]] = ()
    ) -> None:
        self.unserved = unserved
        self.set_models(models)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def set_models(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        self._offering: dict[str, tuple[ServedModel, ...]] = {}  # keys: tasks
        for model in models.values():
            for task_id in model.entry.task_ids:
                self._offering[task_id] = (*self._offering.get(task_id, ()), model)

    def get(self, model_id: str, param: str = "model") -> ServedModel:
        """Return the model of an id that came in the field `param`; raise `unknown_model`."""
        try:
            return self._models[model_id]
        except KeyError as error:
            problem = f"model {model_id[:80]!r} is not served{meant(model_id, self._models)}"
            message = f"{problem}; the served models are {', '.join(self._models)}"
            raise ServiceError(message, param, "unknown_model") from error

    def offering(self, task_id: str) -> tuple[ServedModel, ...]:
        """Return all models that offer a task; raise `unsupported_task` if there is none."""
        if task_id not in self._offering:
            problem = f"no served model offers the task {task_id}"
            message = f"{problem}; GET /v1/tasks lists the models of each task"
            raise ServiceError(message, "task", "unsupported_task")
        return self._offering[task_id]

    def chosen(self, model_id: str | None, task_id: str) -> ServedModel:
        if model_id is None:
            return self.offering(task_id)[0]
        model = self.get(model_id)
        if task_id not in model.entry.task_ids:
            message = f"{model.id} does not offer the task {task_id}"
            raise ServiceError(message, "model", "unsupported_task")
        return model

    def compared(self, model_ids: Sequence[str] | None, task_id: str) -> tuple[ServedModel, ...]:
        """Return the models in catalog order, by default all that offer the task."""
        if model_ids is None:
            return self.offering(task_id)
        compared = {self.get(model_id, "models").id for model_id in model_ids}
        return tuple(model for model in self if model.id in compared)


def served_entries(settings: Settings) -> tuple[CatalogEntry, ...]:
    catalog = load_catalog(settings.catalog, settings.models)
    remote = {} if settings.remote_models is None else load_catalog(settings.remote_models)
    for entry in remote.values():
        if entry.engine is None or entry.id in catalog:
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
        has_runner = entry.adapter_of is None and entry.engine is None
        if has_runner and settings.runner_url(entry.id) is None:
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
            precision = _OF_ENGINE if entry.engine else _as_text(encoder, decoder)
            unserved.append((entry, precision))
    return unserved


def load_served_models(settings: Settings) -> dict[str, ServedModel]:
    models: dict[str, ServedModel] = {}
    for entry in served_entries(settings):  # a base comes before its adapters
        if entry.engine is not None:
            models[entry.id] = engine_model(entry, settings)
            continue
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        if entry.adapter_of is None:
            models[entry.id] = base_model(entry, manifest, folder, settings)
        else:
            base = models[entry.adapter_of]
            check_base(manifest, base.manifest)
            models[entry.id] = adapter_model(entry, manifest, folder, base, settings)
    return models


def base_model(
    entry: CatalogEntry, manifest: Manifest, folder: Path, settings: Settings
) -> ServedModel:
    masks = folder / MASK_DECODER_FILE
    precisions = chosen_precisions(manifest, settings)
    precision = _as_text(*precisions)
    calibrations, proofs = served_scoring(manifest, folder, settings, precision)
    return ServedModel(
        entry,
        manifest,
        MaskDecoder.load(masks) if masks.exists() else None,
        precision,
        read_banned_phrases(folder / PROCESSOR_CONFIG_FILE),
        measured_agreement(manifest, *precisions),
        calibrations,
        proofs,
    )


def engine_model(entry: CatalogEntry, settings: Settings) -> ServedModel:
    """Return a model that an engine serves; its checkpoint is the model's name and the dialect."""
    assert entry.engine is not None
    key = key_of_hashes({entry.engine.dialect: entry.engine.model})
    manifest = Manifest(
        model_id=entry.id,
        family=entry.family,
        source=entry.source,
        revision=None,
        build_key=key,
        checkpoint=key,
        precision=entry.precision,
        image_size_wh=(0, 0),
        resample=0,
        num_image_tokens=_ENGINE_IMAGE_TOKENS,
        hidden_size=0,
        versions={},
        files={},
        parity={},
    )
    calibrations, proofs = served_scoring(manifest, settings.catalog.parent, settings, _OF_ENGINE)
    return ServedModel(entry, manifest, None, _OF_ENGINE, calibrations=calibrations, proofs=proofs)


def adapter_model(
    entry: CatalogEntry, manifest: Manifest, folder: Path, base: ServedModel, settings: Settings
) -> ServedModel:
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


def served_scoring(
    manifest: Manifest, folder: Path, settings: Settings, precision: str
) -> tuple[Calibrations, tuple[ServedProof, ...]]:
    """Return the calibration of each task, without and with tiles, and the proofs about scores.

    Calibrations of the settings replace those of the artifacts. Raise `SettingsError` for an
    invalid file, or one of another checkpoint of the model. Features at int8 are not compared with
    others.
    """
    if settings.calibration == ("off",):
        return {}, ()
    files = list(map(Path, settings.calibration))
    if CALIBRATION_FILE in manifest.files:
        files.insert(0, folder / CALIBRATION_FILE)
    calibrations: dict[tuple[str, bool], Calibration] = {}
    proofs: list[Proof] = []
    try:
        for file in files:
            for calibration in read_calibrations(file):
                if calibration.model == manifest.model_id:
                    calibrations[calibration.task, calibration.with_tiles] = calibration
            proofs += [proof for proof in read_proofs(file) if proof.model == manifest.model_id]
    except CheckpointFileError as error:
        raise SettingsError(f"DIPTYCH_CALIBRATION: {error}") from error
    for key, calibration in calibrations.items():
        images = calibration.images
        if images and images.precision.startswith(_INT8) != precision.startswith(_INT8):
            logger.warning("images of %s are unknown: statistics of %s", key[0], images.precision)
            calibrations[key] = replace(calibration, images=None)
        if calibration.checkpoint != manifest.checkpoint:
            about = f"the calibration of {manifest.model_id} for {calibration.task}"
            raise _stale(about, "checkpoint", calibration.checkpoint, manifest.checkpoint)
    served = {
        "checkpoint": manifest.checkpoint,
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


def proof_for(model: ServedModel, request: TaskRequest) -> Proof:
    """Return the proof of the least sufficient precision; raise `unsupported_task` without one."""
    min_precision = request.fields.min_precision or 0.0
    sufficient: list[Proof] = []
    for served in model.proofs:
        if served.proof.min_precision >= min_precision and served.covers(request):
            sufficient.append(served.proof)
    if not sufficient:
        problem = f"min_precision is {min_precision:g}, which is not proved for {model.id}"
        message = f"{problem} and these fields; GET /v1/models lists its proofs"
        raise ServiceError(message, "min_precision", "unsupported_task")
    return min(sufficient, key=lambda proof: proof.min_precision)


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
