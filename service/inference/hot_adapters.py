"""The adapters of a watched folder as models, listed once their runner has them.

    read        its entry is valid; invalid: refused, logged once
    loading     the gateway polls the runner each second; until it has the build, the version before
                stays listed
    listed      answers requests
    gone        or replaced by one that is refused: not listed; requests that were accepted before
                are answered

It knows no HTTP and no weights; the runner checks them (runners/adapters/hot_loading.py).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from service.admission.threads import STORING
from service.inference.models import RunnerModel, ServedModel, ServedModels
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import adapter_model
from service.settings import Settings, SettingsError
from tasks.catalog import adapter_entry
from wire.artifacts.adapter_folder import (
    SCAN_EVERY_S,
    AdapterFolder,
    AdapterLimits,
    AdapterScan,
    adapter_build_key,
    reason_of,
)
from wire.artifacts.manifest import ArtifactError, key_of_hashes
from wire.runner_messages import AdapterStates

logger = logging.getLogger(__name__)

# ValueError: CatalogError, or a number of more digits than Python writes; RecursionError: a list
# too deep to be named.
_REFUSALS = (ArtifactError, SettingsError, ValueError, RecursionError)
_NONE_YET = AdapterStates(loaded=frozenset(), refused={})


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """A version of an adapter, and the model that it becomes, or None if it is refused."""

    folder: AdapterFolder
    model: RunnerModel | None


class HotAdapters:
    """Serves the catalog and a folder's adapters; `publish` is called with changes."""

    def __init__(
        self,
        scan: AdapterScan,
        served: ServedModels,
        runners: Mapping[str, RunnerClient],
        settings: Settings,
        publish: Callable[[ServedModel, bool], None],
        max_adapter_bytes: int = AdapterLimits().max_bytes,
    ) -> None:
        self._scan = scan
        self._served = served
        self._catalog = {model.id: model for model in served}
        self._bases: list[RunnerModel] = []
        for model in served:
            if isinstance(model, RunnerModel) and not model.is_adapter:
                self._bases.append(model)
        self._reserved = {*self._catalog, *(entry.id for entry, _ in served.unserved)}
        self._runners = runners
        self._settings = settings
        self._publish = publish
        self._max_adapter_bytes = max_adapter_bytes
        self._versions: dict[str, AdapterVersion] = {}
        self._listed: dict[str, RunnerModel] = {}
        self.is_started = False  # the adapters that were there at the start are listed or refused

    async def watch(self) -> None:
        while True:
            try:
                await self.update()
            # a defect must not end the watch, whose models would never change again
            except Exception:
                logger.exception("the adapters could not be updated")
            await asyncio.sleep(SCAN_EVERY_S)

    async def update(self) -> None:
        self._versions = await STORING.run(self._read_all)
        models = {name: version.model for name, version in self._versions.items() if version.model}
        states: dict[str, AdapterStates | None] = {}
        for name, model in models.items():
            if self._listed.get(name) is not model and model.backend_id not in states:
                states[model.backend_id] = await self._runners[model.backend_id].channel.adapters()
        listed: dict[str, RunnerModel] = {}
        for name, model in models.items():
            state = states.get(model.backend_id) or _NONE_YET
            before = self._listed.get(name)
            if before is model or model.version in state.loaded:
                listed[name] = model
            elif before is not None and model.version not in state.refused:
                listed[name] = before
        self._list(listed)
        self.is_started = self.is_started or None not in states.values()

    def _read_all(self) -> dict[str, AdapterVersion]:
        known = {version.folder: version for version in self._versions.values()}
        versions: dict[str, AdapterVersion] = {}
        for name, folder in self._scan.scan().items():
            version = known.get(folder) or self._read(folder) or self._versions.get(name)
            if version is not None:
                versions[name] = version
        return versions

    def _read(self, folder: AdapterFolder) -> AdapterVersion | None:
        """Return an adapter, or None if its files change meanwhile."""
        try:
            version = AdapterVersion(folder, self._model(folder))
        # includes defects: one adapter must not end the watch of the others
        except Exception as error:
            version = AdapterVersion(folder, None)
            if folder.is_current():
                is_defect = not isinstance(error, _REFUSALS)
                message = "the adapter %s is refused: %s"
                logger.error(message, folder.name, reason_of(error), exc_info=is_defect)
        return version if folder.is_current() else None

    def _model(self, folder: AdapterFolder) -> RunnerModel:
        bases: list[RunnerModel] = []
        for model in self._bases:
            if folder.is_adapter_of(model.manifest, model.entry.aliases):
                bases.append(model)
        if len(bases) != 1:
            named = bases or self._bases
            names = ", ".join(f"{model.id} ({model.manifest.source})" for model in named)
            problem = "is the source of" if bases else "is not served; the served models are"
            raise ArtifactError(
                f"its base {folder.base_name()!r} {problem} {names}; name one by adapter_of: ID in"
                " its diptych.yaml"
            )
        (base,) = bases
        if folder.name in self._reserved:
            raise ArtifactError(f"the catalog has a model {folder.name!r}; rename the folder")
        entry = adapter_entry(folder.name, str(folder.path), folder.entry(), base.entry)
        hashes = folder.hashes(self._max_adapter_bytes)
        manifest = replace(
            base.manifest,
            model_id=entry.id,
            source=entry.source,
            revision=None,
            build_key=adapter_build_key(hashes, base.manifest.build_key),
            checkpoint=key_of_hashes(hashes),
            files=hashes,
            parity={},
            adapter_of=base.id,
            base_build_key=base.manifest.build_key,
        )
        return adapter_model(entry, manifest, folder.path, base, self._settings)

    def _list(self, listed: Mapping[str, RunnerModel]) -> None:
        before = self._listed
        self._listed = dict(listed)
        self._served.set_models(self._catalog | self._listed)
        for name, model in before.items():
            if self._listed.get(name) is not model:
                self._publish(model, False)
                if name not in self._listed:
                    logger.info("the adapter %s is no longer served", name)
        for name, model in self._listed.items():
            if before.get(name) is not model:
                self._publish(model, True)
                message = "serving the adapter %s of %s: build %.8s"
                logger.info(message, name, model.backend_id, model.version)
