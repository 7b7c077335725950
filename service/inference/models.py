"""The served models: `RunnerModel`, weights in a runner, and `EngineModel`, a model of an engine.

Both are values, without connections; `ModelClients` has those. `ServedModels` chooses a model by
id and task. service/inference/served_models.py loads them.
"""

import calendar
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from service.errors import ServiceError
from service.images.decoding import LazyImage
from service.inference.engine_calls import CompletionCall, EngineClient
from service.inference.request_fields import GenerationFields, TaskRequest
from service.inference.runner_calls import OnText, RunnerClient, WrittenAnswers
from tasks.catalog import CatalogEntry, Engine
from tasks.errors import meant
from tasks.families import FAMILIES, RUNNER_FAMILIES, FamilyLanguage
from tasks.openai import answer_schema
from tasks.paligemma import MaskDecoder
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.prompts import Prompt
from tasks.results import Result
from tasks.scores import Calibration, Proof, calibration_key
from tasks.table import TaskParameters
from wire.artifacts.manifest import Manifest, key_of_hashes
from wire.runner_messages import FoundFeatures, SequenceSpec

# keyed by task, and whether the image is asked about in tiles
Calibrations = Mapping[tuple[str, bool], Calibration]

ENGINE_PRECISION = "of its engine"
_ENGINE_IMAGE_TOKENS = 1024  # an estimate, for the cost of a request

# The fields of a request that its proof need not share
_FIELDS_AFTER_ANSWER = {"mask_format", "min_score", "min_precision"}
_ANSWER_FIELDS = [
    name for name in GenerationFields.model_fields if name not in _FIELDS_AFTER_ANSWER
]

_LISTED_FIELDS = (
    *("family", "organization", "category", "modality", "release_date", "context_window"),
    *("parameters", "license", "features", "resolution", "adapter_of"),
)
_PROOF_FIELDS = ("fields", "min_precision", "confidence", "min_score", "max_labels", "num_images")


@dataclass(frozen=True, slots=True)
class ServedProof:
    """A proof, and the request that it is about.

    It holds for requests with the same task, parameters and fields that decide the answer.
    """

    proof: Proof
    request: TaskRequest

    def covers(self, request: TaskRequest) -> bool:
        """Return True if a request differs from the proved one only in its image."""
        if request.parameters != self.request.parameters:
            return False
        proved = self.request.fields
        return all(
            getattr(request.fields, name) == getattr(proved, name) for name in _ANSWER_FIELDS
        )


@dataclass(frozen=True, slots=True)
class ModelClients:
    """Clients of runners, by the model whose weights they load, and of engines, by model."""

    runners: Mapping[str, RunnerClient] = field(default_factory=dict)
    engines: Mapping[str, EngineClient] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        yield from self.runners
        yield from self.engines


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A call of a model with the prompts of one request about one image."""

    request: TaskRequest
    prompts: Sequence[Prompt]
    timeout_s: float
    client: str


class ServedModel(Protocol):
    """A model that the service offers; a runner or an engine generates its text."""

    entry: CatalogEntry
    precision: str  # encoder's and decoder's, as text
    calibrations: Calibrations
    proofs: tuple[ServedProof, ...]

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def language(self) -> FamilyLanguage:
        """Prompts and parsers of its family."""
        return FAMILIES[self.entry.family]

    @property
    def backend_id(self) -> str:
        """Return the id of its client, with one queue; adapters share their base's."""

    @property
    def version(self) -> str:
        """Return a hash of all that determines the answers and cannot be changed by settings."""

    @property
    def checkpoint(self) -> str:
        """Return a hash of the weights, with which calibrations and proofs must agree."""

    @property
    def revision(self) -> str:
        """Return the commit of the source; empty if it has none."""

    @property
    def num_image_tokens(self) -> int:
        """Return the number of tokens of an image, for the cost of a request."""

    async def is_ready(self, clients: ModelClients) -> bool: ...

    async def write(
        self, clients: ModelClients, call: ModelCall, image: LazyImage, on_text: OnText | None
    ) -> WrittenAnswers:
        """Return the text of each prompt; `on_text` receives it as it is written.

        Raise `ServiceError`.
        """

    def parse(
        self, request: TaskRequest, image_size_wh: tuple[int, int], texts: Sequence[GeneratedText]
    ) -> Result:
        """Return the result that the texts describe."""

    def familiarity(self, calibration: Calibration, features: FoundFeatures) -> float | None:
        """Return the p-value that an image is like those of the calibration; None if unknown."""

    def describe(self) -> dict[str, Any]:
        """Return the model as `GET /v1/models` lists it."""

    def min_object_share(self, task_id: str) -> float:
        """Return the size that the model finds, by default a token's, as a share of a side."""
        calibration = self.calibrations.get((task_id, False))
        measured = None if calibration is None else calibration.min_object_share
        return measured or 1 / math.isqrt(self.num_image_tokens)

    def find_proof(self, request: TaskRequest) -> Proof:
        """Return the proof of the least sufficient precision; raise `unsupported_task`."""
        min_precision = request.fields.min_precision or 0.0
        sufficient: list[Proof] = []
        for served in self.proofs:
            if served.proof.min_precision >= min_precision and served.covers(request):
                sufficient.append(served.proof)
        if not sufficient:
            problem = f"min_precision is {min_precision:g}, which is not proved for {self.id}"
            message = f"{problem} and these fields; GET /v1/models lists its proofs"
            raise ServiceError(message, "min_precision", "unsupported_task")
        return min(sufficient, key=lambda proof: proof.min_precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerModel(ServedModel):
    """A model whose artifacts are here, or an adapter of one; its runner may be elsewhere."""

    entry: CatalogEntry
    manifest: Manifest
    precision: str
    mask_decoder: MaskDecoder | None = None
    banned_phrases: frozenset[str] = frozenset()
    # measured by the export: its answers against those of float32
    agreement: Mapping[str, Any] | None = None
    calibrations: Calibrations = field(default_factory=dict)
    proofs: tuple[ServedProof, ...] = ()

    @property
    def is_adapter(self) -> bool:
        return self.entry.adapter_of is not None

    @property
    def backend_id(self) -> str:
        return self.entry.adapter_of or self.entry.id

    @property
    def version(self) -> str:
        return self.manifest.build_key

    @property
    def checkpoint(self) -> str:
        return self.manifest.checkpoint

    @property
    def revision(self) -> str:
        return self.manifest.revision or ""

    @property
    def num_image_tokens(self) -> int:
        return self.manifest.num_image_tokens

    async def is_ready(self, clients: ModelClients) -> bool:
        return await clients.runners[self.backend_id].is_ready()

    async def write(
        self, clients: ModelClients, call: ModelCall, image: LazyImage, on_text: OnText | None
    ) -> WrittenAnswers:
        runner = clients.runners[self.backend_id]
        return await runner.write(self.manifest, image, self._sequences(call), on_text)

    def _sequences(self, call: ModelCall) -> list[SequenceSpec]:
        """Return a sequence for each prompt; the grammar of one for a mask has its name alone."""
        options = call.request.fields
        task_id = call.request.task.id
        parameters = call.request.parameters
        phrases = parameters.phrases or ()
        is_split = task_id == "instance_segmentation" and len(phrases) == len(call.prompts)
        sequences: list[SequenceSpec] = []
        for index, prompt in enumerate(call.prompts):
            if is_split:
                parameters = replace(parameters, phrases=None, phrase=phrases[index])
            sequence = SequenceSpec(
                segments=[(segment.text, segment.is_control) for segment in prompt],
                max_new_tokens=options.max_new_tokens,
                num_beams=options.num_beams,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
                grammar=self._grammar(task_id, parameters) if options.constrained else None,
                adapter=self.version if self.is_adapter else None,
                own_token=next((segment.text for segment in prompt if segment.is_token), None),
                timeout_s=call.timeout_s,
                client=call.client,
            )
            sequences.append(sequence)
        return sequences

    def _grammar(self, task_id: str, parameters: TaskParameters) -> str | None:
        language = RUNNER_FAMILIES[self.entry.family]
        return language.answer_grammar(self.entry, task_id, parameters)

    def parse(
        self, request: TaskRequest, image_size_wh: tuple[int, int], texts: Sequence[GeneratedText]
    ) -> Result:
        task = AnsweredTask(
            entry=self.entry,
            task_id=request.task.id,
            parameters=request.parameters,
            image_size_wh=image_size_wh,
            mask_format=request.fields.mask_format,
            mask_decoder=self.mask_decoder,
            banned_phrases=self.banned_phrases,
        )
        return self.language.parse_answer(task, texts)

    def familiarity(self, calibration: Calibration, features: FoundFeatures) -> float | None:
        if calibration.images is None:
            return None
        return calibration.images.familiarity(features.embedding)

    def describe(self) -> dict[str, Any]:
        return {**_describe_model(self), "agreement": self.agreement}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel(ServedModel):
    """A model that a server of OpenAI's protocol answers for, without artifacts."""

    entry: CatalogEntry
    engine: Engine
    precision: str = ENGINE_PRECISION
    calibrations: Calibrations = field(default_factory=dict)
    proofs: tuple[ServedProof, ...] = ()

    @property
    def backend_id(self) -> str:
        return self.entry.id

    @property
    def version(self) -> str:
        return key_of_hashes({self.engine.dialect: self.engine.model})

    @property
    def checkpoint(self) -> str:
        return self.version

    @property
    def revision(self) -> str:
        return ""

    @property
    def num_image_tokens(self) -> int:
        return _ENGINE_IMAGE_TOKENS

    async def is_ready(self, clients: ModelClients) -> bool:  # noqa: ARG002
        """Return True: an engine that is down is an error of its model's answers alone."""
        return True

    async def write(
        self, clients: ModelClients, call: ModelCall, image: LazyImage, on_text: OnText | None
    ) -> WrittenAnswers:
        (prompt,) = call.prompts
        request = call.request
        schema = None
        if request.fields.constrained:
            schema = answer_schema(self.entry, request.task.id, request.parameters)
        completion = CompletionCall(
            prompt="".join(segment.text for segment in prompt),
            schema=schema,
            options=request.fields,
            timeout_s=call.timeout_s,
        )
        return await clients.engines[self.id].write(image, completion, on_text)

    def parse(
        self, request: TaskRequest, image_size_wh: tuple[int, int], texts: Sequence[GeneratedText]
    ) -> Result:
        task = AnsweredTask(
            entry=self.entry,
            task_id=request.task.id,
            parameters=request.parameters,
            image_size_wh=image_size_wh,
            mask_format=request.fields.mask_format,
        )
        return self.language.parse_answer(task, texts)

    def familiarity(self, calibration: Calibration, features: FoundFeatures) -> float | None:  # noqa: ARG002
        """Return None: engines send no features."""
        return None

    def describe(self) -> dict[str, Any]:
        return {**_describe_model(self), "agreement": None}


def _describe_model(model: ServedModel) -> dict[str, Any]:
    proofs: list[dict[str, Any]] = []
    for served_proof in model.proofs:
        proofs.append({name: getattr(served_proof.proof, name) for name in _PROOF_FIELDS})
    return {
        **describe_entry(model.entry, model.precision),
        "checkpoint": model.checkpoint,
        "calibrated_tasks": sorted(task for task, tiled in model.calibrations if not tiled),
        "calibration": calibration_key(model.calibrations),
        "proofs": proofs,
    }


def describe_entry(entry: CatalogEntry, precision: str) -> dict[str, Any]:
    year, month = entry.release_date.split("-")
    return {
        "id": entry.id,
        "object": "model",
        "created": calendar.timegm((int(year), int(month), 1, 0, 0, 0)),
        "owned_by": entry.organization,
        **{name: getattr(entry, name) for name in _LISTED_FIELDS},
        "tasks": list(entry.task_ids),
        "precision": precision,
    }


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
