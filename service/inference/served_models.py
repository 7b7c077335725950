"""The served models: catalog entries with manifests and mask decoders, in catalog order."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from service.errors import UnknownModel, UnsupportedTask
from service.inference.proofs import ServedProof, served_proofs
from service.settings import Settings, SettingsError
from tasks.catalog import (
    HUB_PREFIX,
    HUB_SEPARATOR,
    CatalogEntry,
    Precision,
    load_catalog,
    parse_entry,
)
from tasks.errors import meant
from tasks.families import FAMILIES, FamilyLanguage
from tasks.florence2 import read_banned_phrases
from tasks.paligemma import MaskDecoder
from tasks.scores import Calibration, CalibrationError, read_calibrations
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    ENTRY_FILE,
    MASK_DECODER_FILE,
    PROCESSOR_CONFIG_FILE,
    ArtifactError,
    Manifest,
    read_manifest,
)
from wire.artifacts.model_store import artifact_folder, check_base
from wire.artifacts.part_precision import choose_precision, measured_agreement


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
    # keyed by task, and whether the image is asked about in tiles
    calibrations: Mapping[tuple[str, bool], Calibration] = field(default_factory=dict)
    proofs: tuple[ServedProof, ...] = ()
    id: str = field(init=False)
    language: FamilyLanguage = field(init=False)  # prompts and parsers of its family
    runner_id: str = field(init=False)  # the model whose runner answers: an adapter's base
    adapter_key: str | None = field(init=False)  # names an adapter at the runner of its base

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.entry.id)
        object.__setattr__(self, "language", FAMILIES[self.entry.family])
        object.__setattr__(self, "runner_id", self.entry.adapter_of or self.entry.id)
        object.__setattr__(
            self, "adapter_key", self.manifest.build_key if self.entry.adapter_of else None
        )

    def min_object_share(self, task_id: str) -> float:
        """Return the smallest size that the model finds, as a share of the side of its input.

        It is that of an image token where a calibration has measured none.
        """
        calibration = self.calibrations.get((task_id, False))
        measured = None if calibration is None else calibration.min_object_share
        return measured or 1 / math.isqrt(self.manifest.num_image_tokens)


@dataclass(frozen=True, slots=True)
class UnservedModel:
    """A model of the catalog that this service does not serve."""

    entry: CatalogEntry
    precision: str


def served_entries(settings: Settings) -> tuple[CatalogEntry, ...]:
    """Return the entries of DIPTYCH_MODELS, the catalog's first; raise `SettingsError`."""
    catalog = load_catalog(settings.catalog, settings.models)
    for model_id in settings.models:
        if model_id not in catalog:
            catalog[model_id] = _stored_entry(model_id, catalog)
    served = tuple(entry for entry in catalog.values() if entry.id in settings.models)
    for entry in served:
        if entry.adapter_of is not None:
            _check_adapter(entry, settings)
    return served


def _stored_entry(model_id: str, catalog: Iterable[str]) -> CatalogEntry:
    """Return the entry that the export of `hf:owner/name` has stored with the artifacts."""
    try:
        if HUB_SEPARATOR not in model_id:
            raise ArtifactError("only the models of repositories are stored with their entry")
        stored = (artifact_folder(model_id) / ENTRY_FILE).read_text(encoding="utf-8")
        return parse_entry(json.loads(stored))
    except (ArtifactError, OSError, ValueError) as error:
        raise SettingsError(
            f"DIPTYCH_MODELS: unknown model {model_id!r}{meant(model_id, catalog)}; the catalog has"
            f" {', '.join(catalog)}; a repository of the hub is exported first:"
            f" python -m export {HUB_PREFIX}owner/name"
        ) from error


def _check_adapter(entry: CatalogEntry, settings: Settings) -> None:
    """Raise `SettingsError` unless an adapter's base is served and alone has settings."""
    if entry.adapter_of not in settings.models:
        raise SettingsError(
            f"DIPTYCH_MODELS has {entry.id}, which is an adapter of {entry.adapter_of} and runs in"
            f" its runner; add {entry.adapter_of}"
        )
    for name, pairs in (
        ("DIPTYCH_RUNNER_URLS", settings.runner_urls),
        ("DIPTYCH_DEVICES", settings.devices),
    ):
        if any(pair.partition("=")[0] == entry.id for pair in pairs):
            raise SettingsError(
                f"{name} names {entry.id}, an adapter; name its base {entry.adapter_of} instead"
            )


def local_models(entries: Iterable[CatalogEntry], settings: Settings) -> list[str]:
    """Return the ids of those of `entries` whose runner this host starts; no adapter has one."""
    models = [entry.id for entry in entries if entry.adapter_of is None]
    return [model for model in models if settings.runner_url(model) is None]


def runner_processes(entries: Iterable[CatalogEntry], settings: Settings) -> list[str]:
    """Return the ids of those of `entries` whose runner is a process of this host."""
    return [] if settings.is_one_process else local_models(entries, settings)


def adapters_of(model_id: str, entries: Iterable[CatalogEntry]) -> tuple[str, ...]:
    """Return the ids of the adapters of a model among `entries`."""
    return tuple(entry.id for entry in entries if entry.adapter_of == model_id)


def unserved_models(settings: Settings) -> tuple[UnservedModel, ...]:
    """Return the other models of the catalog, with their default precisions on this host."""
    encoder = encoder_device(settings.device)
    decoder = decoder_device(settings.device)
    return tuple(
        UnservedModel(
            entry,
            _as_text(entry.precision[encoder]["encoder"], entry.precision[decoder]["decoder"]),
        )
        for entry in load_catalog(settings.catalog).values()
        if entry.id not in settings.models
    )


def load_served_model(entry: CatalogEntry, folder: Path, settings: Settings) -> ServedModel:
    """Read the artifacts of a model that the gateway needs."""
    manifest = read_manifest(folder)
    masks = folder / MASK_DECODER_FILE
    mask_decoder = MaskDecoder.load(masks) if masks.exists() else None
    banned_phrases = read_banned_phrases(folder / PROCESSOR_CONFIG_FILE)
    chosen = chosen_precisions(manifest, settings)
    precision = _as_text(*chosen)
    agreement = measured_agreement(manifest, *chosen)
    scoring = served_scoring(manifest, folder, settings, precision)
    return ServedModel(
        entry, manifest, mask_decoder, precision, banned_phrases, agreement, *scoring
    )


def load_served_models(settings: Settings) -> dict[str, ServedModel]:
    """Read the artifacts that the gateway needs, in catalog order; raise `ArtifactError`."""
    models: dict[str, ServedModel] = {}
    for entry in served_entries(settings):  # a base comes before its adapters
        folder = artifact_folder(entry.id)
        if entry.adapter_of is None:
            models[entry.id] = load_served_model(entry, folder, settings)
        else:
            manifest = read_manifest(folder)
            base = models[entry.adapter_of]
            check_base(manifest, base.manifest)
            models[entry.id] = adapter_model(entry, manifest, folder, base, settings)
    return models


def adapter_model(
    entry: CatalogEntry, manifest: Manifest, folder: Path, base: ServedModel, settings: Settings
) -> ServedModel:
    """Return an adapter as a model with its own entry, manifest, calibrations and proofs.

    One with a vision encoder of its own may run it in another precision. Raise `ArtifactError` if
    that is impossible.
    """
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
) -> tuple[Mapping[tuple[str, bool], Calibration], tuple[ServedProof, ...]]:
    """Return the calibration of each task, without and with tiles, and the proofs about scores.

    Calibrations of the settings replace those of the artifacts. Raise `SettingsError` for an
    invalid file, or one of another checkpoint of the model.
    """
    if settings.calibration == ("off",):
        return {}, ()
    own_file = [folder / CALIBRATION_FILE] if CALIBRATION_FILE in manifest.files else []
    files = [*own_file, *map(Path, settings.calibration)]
    try:
        read = list(chain(*map(read_calibrations, files)))
    except CalibrationError as error:
        raise SettingsError(f"DIPTYCH_CALIBRATION: {error}") from error
    own = {(each.task, each.with_tiles): each for each in read if each.model == manifest.model_id}
    for each in own.values():
        if each.checkpoint != manifest.checkpoint:
            raise SettingsError(
                f"DIPTYCH_CALIBRATION: the calibration of {each.model} for {each.task} is of the"
                f" checkpoint {each.checkpoint}; the one served is {manifest.checkpoint}: fit it"
                " again with diptych evaluate --calibrate, or remove it"
            )
    return own, served_proofs(files, manifest, precision, own)


def chosen_precisions(manifest: Manifest, settings: Settings) -> tuple[Precision, Precision]:
    """Return the precisions of encoder and decoder in the runner; raise `ArtifactError`."""
    device, _ = settings.device_of(manifest.adapter_of or manifest.model_id)
    encoder = choose_precision(
        manifest, "encoder", encoder_device(device), settings.encoder_precision
    )
    decoder = choose_precision(
        manifest, "decoder", decoder_device(device), settings.decoder_precision
    )
    return encoder, decoder


def served_precision(manifest: Manifest, settings: Settings) -> str:
    """Return the precisions of encoder and decoder as they are listed; raise `ArtifactError`."""
    return _as_text(*chosen_precisions(manifest, settings))


def _as_text(encoder: Precision, decoder: Precision) -> str:
    return encoder if encoder == decoder else f"encoder {encoder}, decoder {decoder}"


def check_positions(manifest: Manifest, settings: Settings) -> None:
    """Raise `SettingsError` if DIPTYCH_DECODER_MAX_POSITIONS has no room for image and prompt."""
    allowed = settings.decoder_max_positions
    if 0 < allowed <= manifest.num_image_tokens:
        raise SettingsError(
            f"DIPTYCH_DECODER_MAX_POSITIONS={allowed} is too low: an image alone takes"
            f" {manifest.num_image_tokens} positions of {manifest.model_id}, to which prompt and"
            " answer are added"
        )


class ServedModels:
    """All served models by id; `unserved` are the other models of the catalog."""

    def __init__(
        self, models: Mapping[str, ServedModel], unserved: tuple[UnservedModel, ...] = ()
    ) -> None:
        self._models = models
        self.unserved = unserved

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def set_models(self, models: Mapping[str, ServedModel]) -> None:
        """Replace the models; requests keep those that they have."""
        self._models = models

    def get(self, model_id: str, param: str = "model") -> ServedModel:
        """Return the model of an id that came in the field `param`; raise `UnknownModel`."""
        try:
            return self._models[model_id]
        except KeyError as error:
            served = ", ".join(self._models)
            problem = f"model {model_id[:80]!r} is not served{meant(model_id, self._models)}"
            raise UnknownModel(f"{problem}; the served models are {served}", param) from error

    def offering(self, task_id: str) -> tuple[ServedModel, ...]:
        """Return all models that offer a task; raise `UnsupportedTask` if there is none."""
        offering = tuple(
            model for model in self._models.values() if task_id in model.entry.task_ids
        )
        if not offering:
            raise UnsupportedTask(
                f"no served model offers the task {task_id}; GET /v1/tasks lists the models of each"
                " task",
                "task",
            )
        return offering

    def asked(self, model_id: str | None, task_id: str) -> ServedModel:
        """Return the model of an id, by default the first that offers the task.

        Raise `UnknownModel`, or `UnsupportedTask` if it does not offer the task.
        """
        if model_id is None:
            return self.offering(task_id)[0]
        model = self.get(model_id)
        if task_id not in model.entry.task_ids:
            raise UnsupportedTask(f"{model.id} does not offer the task {task_id}", "model")
        return model

    def compared(self, model_ids: Sequence[str] | None, task_id: str) -> tuple[ServedModel, ...]:
        """Return the models of a comparison in catalog order, by default all that offer the task.

        Raise `UnknownModel` or `UnsupportedTask`.
        """
        if model_ids is None:
            return self.offering(task_id)
        chosen = {self.get(model_id, "models").id for model_id in model_ids}
        return tuple(model for model in self if model.id in chosen)
