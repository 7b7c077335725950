"""The models that can be served, strictly parsed from catalog.yaml.

An entry is data about a checkpoint; its files and artifacts are not known here.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from tasks.errors import first_problem
from tasks.table import TASKS, Family

Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
Precision = Literal["float32", "int8", "bfloat16", "float16"]
Dialect = Literal["qwen3-vl", "qwen2.5-vl", "gemma", "diptych"]

HUB_PREFIX = "hf:"  # prefix of a model named by its repository: hf:owner/name
HUB_SEPARATOR = "--"  # replaces the slash in the id of such a model: owner--name

# tasks that an entry may give a template, and the field that it must have once
_TEMPLATE_FIELDS = {
    "captioning": "",
    "instance_segmentation": "{phrase}",
    "region_description": "{region}",
    "visual_question_answering": "{question}",
}
_NOT_IN_ID = re.compile(r"[^a-z0-9.-]+")
_ANY = "*"  # wildcard in the id and source of an entry for many repositories
_ENGINE_KEYS = ("url", "model", "dialect", "api_key_env")
_ONE_PRECISION = {"encoder": "float32", "decoder": "float32"}
# what an entry of an engine need not say; 0: unknown
_ENGINE_DEFAULTS: Mapping[str, object] = {
    "revision": None,
    "category": "Vision-language",
    "modality": "Image, text",
    "license": "of the engine's model",
    "release_date": "1970-01",
    "parameters": 0,
    "context_window": 0,
    "resolution": 0,
    "features": [],
    "precision": {"cpu": _ONE_PRECISION, "cuda": _ONE_PRECISION},
}
_OF_BASE = {"aliases", "family", "resolution", "context_window", "precision", "mask_decoder"}


class CatalogError(ValueError):
    """The catalog is invalid; the message has the entry, the key, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TaskOverride:
    """An entry's change to a task of its family; without a template the task is not offered."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    template: str | None
    labels: StrictBool = True  # a label follows the locations of the answer
    separator: str | None = None  # replaces " ; " in a question


def _with_template(value: object) -> object:
    return {"template": None} if value is None else value


def _checked_overrides(tasks: Mapping[str, TaskOverride]) -> Mapping[str, TaskOverride]:
    for task_id, override in tasks.items():
        if task_id not in TASKS:
            raise ValueError(f"{task_id!r} is not a task; allowed are {', '.join(TASKS)}")
        template = override.template
        if template is None:
            continue
        required = _TEMPLATE_FIELDS.get(task_id)
        if required is None:
            allowed = ", ".join(_TEMPLATE_FIELDS)
            raise ValueError(f"{task_id} must be null; a template may have {allowed}")
        if (required and template.count(required) != 1) or template.count("{language}") > 1:
            field = required or "{language} at most"
            raise ValueError(
                f"the template of {task_id} must contain {field} once; it is {template!r}"
            )
        if not override.labels and task_id != "instance_segmentation":
            raise ValueError(f"labels of {task_id} is not allowed, only of instance_segmentation")
        if override.separator is not None and task_id != "visual_question_answering":
            raise ValueError(f"separator of {task_id} is not allowed, only of questions")
    return tasks


_Text = Annotated[str, StringConstraints(pattern=r"\S")]
_Count = Annotated[int, Field(strict=True, ge=0)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=20)]
_Alias = Annotated[str, StringConstraints(pattern=r"^\S{1,200}$")]
_Parts = Annotated[Mapping[Part, Precision], Field(min_length=2)]
_Override = Annotated[TaskOverride, BeforeValidator(_with_template)]
_Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


@dataclass(frozen=True, slots=True)
class Engine:
    """A server of OpenAI's protocol that answers for a model."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    url: _Url  # without the path of a route: http://127.0.0.1:8000/v1
    model: _Text  # its name there
    dialect: Dialect
    api_key_env: _Variable | None = None  # the environment variable that has the key


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model: a checkpoint of a family, or one that an engine serves.

    The types of its fields are the rules of the file.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    family: Family
    source: _Text  # folder relative to the root of the repository, or hub id
    # commit, branch or tag of a hub source; default: main
    revision: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")] | None
    organization: _Text
    category: _Text
    modality: _Text
    license: _Text
    release_date: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}$")]  # YYYY-MM
    parameters: _Count
    context_window: _Count  # tokens, image tokens included
    resolution: _Count  # side of the square that images are resized to, px
    # chosen for each part on each device; the export measures the loss
    precision: Annotated[Mapping[Device, _Parts], Field(min_length=2)]
    features: _Texts
    mask_decoder: _Text | None = None  # file inside the source folder, or hf:// address
    # the label of a box is one of the names of the request: True for checkpoints that were trained
    # to write it as it was given; others write labels of their own
    forced_names: StrictBool = False
    # PaliGemma's; otherwise it detects all names by one prompt
    one_name_per_prompt: StrictBool = False
    # Florence-2's; otherwise names are sent as they are
    drops_articles: StrictBool = False
    tasks: Annotated[Mapping[str, _Override], AfterValidator(_checked_overrides)] = field(
        default_factory=dict
    )
    # hash of model.safetensors at `revision`
    weights_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    # the id of the base, if the source is a LoRA adapter in PEFT's format
    adapter_of: str | None = None
    # other names by which adapters of this checkpoint name their base
    aliases: Annotated[tuple[_Alias, ...], Field(max_length=20)] = ()
    # of the family openai: a server that answers, in place of a runner
    engine: Engine | None = None
    # the tasks that this model offers, in the table's order, and its own templates
    task_ids: tuple[str, ...] = field(init=False)
    templates: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        offered: list[str] = []
        templates: dict[str, str] = {}
        for task in TASKS.values():
            override = self.tasks.get(task.id)
            if override is None:
                if self.family in task.families:
                    offered.append(task.id)
            elif override.template is not None:
                offered.append(task.id)
                templates[task.id] = override.template
        object.__setattr__(self, "task_ids", tuple(offered))
        object.__setattr__(self, "templates", templates)

    def has_labels(self, task_id: str) -> bool:
        override = self.tasks.get(task_id)
        return override is None or override.labels

    @property
    def has_runner(self) -> bool:
        """Return True for weights that a runner loads, False for a model of an engine."""
        return self.engine is None


def model_id_of(name: str) -> str:
    """Return the id of a model that is named by it, or by its repository as `hf:owner/name`."""
    return hub_model_id(name.removeprefix(HUB_PREFIX)) if name.startswith(HUB_PREFIX) else name


def hub_model_id(repository: str) -> str:
    """Return the id of a repository's model: `owner--name`, in the characters of ids."""
    return _NOT_IN_ID.sub("-", repository.lower().replace("/", HUB_SEPARATOR))


def load_catalog(path: Path, model_ids: Collection[str] = ()) -> dict[str, CatalogEntry]:
    """Read the catalog in file order; raise `CatalogError`.

    An entry whose id has a `*` is read once for each id of `model_ids` that it matches.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path} cannot be read as YAML: {error}") from error
    rows = document["models"] if isinstance(document, dict) and [*document] == ["models"] else None
    if not isinstance(rows, list):
        raise CatalogError(f"{path} must contain a list under the single key models")
    entries: dict[str, CatalogEntry] = {}
    bases: dict[str, CatalogEntry] = {}
    for row in _expanded(rows, model_ids):
        if isinstance(row, dict) and "adapter_of" in row:
            entry = _entry_of_adapter(row, bases)
        else:
            entry = parse_entry(row)
            bases[entry.id] = entry
        if entry.id in entries:
            raise CatalogError(f"{path} has more than one entry {entry.id!r}")
        entries[entry.id] = entry
    names: dict[str, str] = {}
    for base in bases.values():
        names |= {base.id: base.id, base.source: base.id}
    for base in bases.values():
        for alias in base.aliases:
            if (other := names.setdefault(alias, base.id)) != base.id:
                raise CatalogError(f"{base.id}: aliases has {alias!r}, a name of {other}")
    return entries


def _expanded(rows: Sequence[object], model_ids: Collection[str]) -> Iterator[object]:
    """Yield the rows; of one with a `*`, one for each id that matches."""
    names = {*model_ids, *(row.get("adapter_of") for row in rows if isinstance(row, dict))}
    for row in rows:
        if not isinstance(row, dict) or _ANY not in str(row.get("id")):
            yield row
            continue
        if row["id"].count(_ANY) != 1 or str(row.get("source")).count(_ANY) != 1:
            raise CatalogError(f"{row['id']}: id and source must have one {_ANY} each")
        variants = row.get("variants", {})
        tasks = variants.values() if isinstance(variants, dict) else [None]
        if not all(isinstance(task, dict) for task in tasks):
            allowed = "must map names to mappings of task ids"
            raise CatalogError(f"{row['id']}: variants {allowed}; not {variants!r}")
        for name in variants or ("x",):  # also checked when none matches
            parse_entry(_variant_row(row, name, variants))
        pattern = re.compile(re.escape(str(row["id"])).replace(r"\*", "([a-z0-9-]+)"))
        for model_id in sorted(filter(None, names)):
            if match := pattern.fullmatch(str(model_id)):
                yield _variant_row(row, match[1], variants)


def _variant_row(
    row: Mapping[str, Any], name: str, variants: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """Return the row of one repository, which offers the tasks of its variant only."""
    variant_row = {key: value for key, value in row.items() if key != "variants"}
    for key in ("id", "source"):
        variant_row[key] = str(row[key]).replace(_ANY, name)
    if not variants:
        return variant_row
    if name not in variants:
        raise CatalogError(
            f"{variant_row['id']} is not in the catalog: * of {row['id']} is one of"
            f" {', '.join(variants)}"
        )
    if "instance_segmentation" not in variants[name]:
        variant_row.pop("mask_decoder", None)
    return {**variant_row, "tasks": {**dict.fromkeys(TASKS), **variants[name]}}


def adapter_entry(
    model_id: str, source: str, row: Mapping[str, object], base: CatalogEntry
) -> CatalogEntry:
    """Return the entry of an adapter outside the catalog, over its base's; raise `CatalogError`."""
    if fixed := sorted({"id", "source"} & row.keys()):
        raise CatalogError(f"{model_id}: {fixed[0]} is not allowed; it follows from the folder")
    row = {**row, "id": model_id, "source": source, "adapter_of": base.id}
    return _entry_of_adapter(row, {base.id: base})


def _entry_of_adapter(row: Mapping[str, Any], bases: Mapping[str, CatalogEntry]) -> CatalogEntry:
    """Return the entry of an adapter, whose other keys are those of a base before it."""
    entry_id = row.get("id")
    base = row["adapter_of"]
    if not isinstance(base, str) or base not in bases:
        allowed = f"a model before it that is not an adapter: {', '.join(bases)}"
        raise CatalogError(f"{entry_id}: adapter_of must be {allowed}; not {base!r}")
    if fixed := ", ".join(sorted(_OF_BASE & row.keys())):
        raise CatalogError(
            f"{entry_id}: an adapter shares {fixed} with its base {base}; remove the keys"
        )
    inherited = entry_row(bases[base])
    for key in ("id", "source", "revision", "weights_sha256", "aliases", "forced_names"):
        inherited.pop(key)  # perhaps the adapter is tuned to write labels of its own
    return parse_entry({**inherited, "revision": None, **row})


def entry_row(entry: CatalogEntry) -> dict[str, Any]:
    """Return the entry as `parse_entry` reads it from JSON, without `adapter_of`."""
    row: dict[str, Any] = _ENTRIES.dump_python(entry, mode="json", exclude={"adapter_of"})
    return row


def parse_entry(row: object) -> CatalogEntry:
    """Return one entry of the catalog; raise `CatalogError`."""
    entry_id = row.get("id") if isinstance(row, dict) else row
    if isinstance(row, dict) and row.get("family") == "openai":
        row = _engine_row(row)
    try:
        entry = _ENTRIES.validate_python(row)
    except ValidationError as error:
        raise CatalogError(f"{entry_id}: {first_problem(error)}") from error
    needs = entry.family == "paligemma" and "instance_segmentation" in entry.task_ids
    if needs != (entry.mask_decoder is not None):
        rule = "set for paligemma models that offer instance_segmentation, and for no others"
        raise CatalogError(f"{entry.id}: mask_decoder must be {rule}, not {entry.mask_decoder!r}")
    for name in ("parameters", "context_window", "resolution"):
        if entry.engine is None and getattr(entry, name) == 0:
            raise CatalogError(f"{entry.id}: {name} must be greater than 0, not 0")
    if (entry.family == "openai") != (entry.engine is not None):
        raise CatalogError(f"{entry.id}: url, model and dialect are of the family openai only")
    if entry.engine is not None and (entry.templates or entry.adapter_of is not None):
        raise CatalogError(f"{entry.id}: a model of an engine has no templates and no adapters")
    return entry


def _engine_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an engine's model with `engine` and all keys of a checkpoint."""
    engine = {key: row[key] for key in _ENGINE_KEYS if key in row}
    others = {key: value for key, value in row.items() if key not in _ENGINE_KEYS}
    source = str(row.get("model") or row.get("id"))
    organization = source.rpartition("/")[0] or str(row.get("id"))
    derived = {"source": source, "organization": organization, "engine": engine}
    return {**_ENGINE_DEFAULTS, **derived, **others}


_ENTRIES = TypeAdapter(CatalogEntry)
