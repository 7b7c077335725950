"""Lists of the models, with their metadata, and of the tasks, with their parameters, as JSON."""

import calendar
from typing import Any

from service.inference.served_models import ServedModel, ServedModels
from tasks.catalog import CatalogEntry
from tasks.scores import calibration_key
from tasks.table import TASKS

_PROOF_FIELDS = (
    "fields",
    "min_precision",
    "confidence",
    "min_score",
    "max_labels",
    "num_images",
)


def models_json(models: ServedModels) -> dict[str, Any]:
    """Return the served models in the list format of the OpenAI API."""
    return {"object": "list", "data": [model_json(model) for model in models]}


def catalog_json(models: ServedModels) -> dict[str, Any]:
    """Return the served models, then the catalog's others with their serve commands."""
    served = [model_json(model) | {"served": True, "serve_command": None} for model in models]
    unserved = [
        _row(model.entry, model.precision)
        | {"checkpoint": None, "calibrated_tasks": [], "calibration": "", "proofs": []}
        | {"agreement": None}
        | {"served": False, "serve_command": f'make serve MODELS="{model.entry.id}"'}
        for model in models.unserved
    ]
    return {"object": "list", "data": served + unserved}


def tasks_json(models: ServedModels) -> dict[str, Any]:
    """Return every task with the JSON Schema of its parameters and the models that offer it."""
    rows: list[dict[str, Any]] = []
    for task in TASKS.values():
        offering = [model.id for model in models if task.id in model.entry.task_ids]
        rows.append(
            {
                "id": task.id,
                "object": "task",
                "description": task.description,
                "result": task.result_kind,
                "parameters": task.json_schema(),
                "models": offering,
            }
        )
    return {"object": "list", "data": rows}


def model_json(model: ServedModel) -> dict[str, Any]:
    proofs = []
    for each in model.proofs:
        proofs.append({name: getattr(each.proof, name) for name in _PROOF_FIELDS})
    served = {
        "checkpoint": model.manifest.checkpoint,
        "calibrated_tasks": sorted(task for task, tiled in model.calibrations if not tiled),
        "calibration": calibration_key(model.calibrations),
        "proofs": proofs,
        "agreement": model.agreement,
    }
    return _row(model.entry, model.precision) | served


def _row(entry: CatalogEntry, precision: str) -> dict[str, Any]:
    """Return the columns of the comparison table."""
    year, month = map(int, entry.release_date.split("-"))
    return {
        "id": entry.id,
        "object": "model",
        "created": calendar.timegm((year, month, 1, 0, 0, 0)),
        "owned_by": entry.organization,
        "family": entry.family,
        "organization": entry.organization,
        "category": entry.category,
        "modality": entry.modality,
        "release_date": entry.release_date,
        "context_window": entry.context_window,
        "parameters": entry.parameters,
        "license": entry.license,
        "tasks": list(entry.task_ids),
        "features": list(entry.features),
        "resolution": entry.resolution,
        "precision": precision,
        "adapter_of": entry.adapter_of,
    }
