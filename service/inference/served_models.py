"""The models of this service: catalog entries with their manifests and mask decoders, in catalog order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runners.artifacts.devices import decoder_device, encoder_device
from runners.artifacts.manifest import MASK_DECODER_FILE, Manifest, read_manifest
from runners.artifacts.precision import choose_precision
from service.errors import UnknownModel, UnsupportedTask
from service.settings import Settings, SettingsError
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES, FamilyLanguage
from tasks.paligemma import MaskDecoder


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that answers requests."""

    entry: CatalogEntry
    manifest: Manifest
    mask_decoder: MaskDecoder | None
    precision: str  # of its parts, for people

    @property
    def id(self) -> str:
        """Id in the catalog."""
        return self.entry.id

    @property
    def language(self) -> FamilyLanguage:
        """Prompts and parsers of the model's family."""
        return FAMILIES[self.entry.family]


def served_entries(settings: Settings) -> tuple[CatalogEntry, ...]:
    """Return the catalog entries that the settings name, in catalog order; raise `SettingsError` for an unknown one."""
    catalog = load_catalog(settings.catalog)
    for model_id in settings.models:
        if model_id not in catalog:
            raise SettingsError(f"DIPTYCH_MODELS names {model_id!r}; the catalog has {', '.join(catalog)}")
    return tuple(entry for entry in catalog.values() if entry.id in settings.models)


def load_served_model(entry: CatalogEntry, folder: Path, settings: Settings) -> ServedModel:
    """Read what the gateway needs of a model from its artifact folder."""
    manifest, masks = read_manifest(folder), folder / MASK_DECODER_FILE
    mask_decoder = MaskDecoder.load(masks) if masks.exists() else None
    return ServedModel(entry, manifest, mask_decoder, served_precision(manifest, settings))


def served_precision(manifest: Manifest, settings: Settings) -> str:
    """Return what a model's runners run in, chosen as they choose; raise `ArtifactError` for what they cannot."""
    encoder = choose_precision(manifest, "encoder", encoder_device(settings.device), settings.encoder_precision)
    decoder = choose_precision(manifest, "decoder", decoder_device(settings.device), settings.decoder_precision)
    return encoder if encoder == decoder else f"encoder {encoder}, decoder {decoder}"


def check_positions(manifest: Manifest, settings: Settings) -> None:
    """Raise `SettingsError` where an image alone is more than a sequence may have."""
    allowed = settings.decoder_max_positions
    if 0 < allowed <= manifest.num_image_tokens:
        raise SettingsError(
            f"DIPTYCH_DECODER_MAX_POSITIONS is {allowed}; an image of {manifest.model_id} alone has "
            f"{manifest.num_image_tokens}, and prompt and answer come on top"
        )


class ServedModels:
    """All models of this service by id."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, model_id: str, param: str = "model") -> ServedModel:
        """Return a model; raise `UnknownModel`."""
        try:
            return self._models[model_id]
        except KeyError as error:
            raise UnknownModel(
                f"no model {model_id[:80]!r} is served; there are {', '.join(self._models)}", param
            ) from error

    def offering(self, task_id: str) -> tuple[ServedModel, ...]:
        """Return the models that offer a task; raise `UnsupportedTask` if none does."""
        offering = tuple(model for model in self if model.entry.offers(task_id))
        if not offering:
            raise UnsupportedTask(f"no served model offers {task_id}", "task")
        return offering
