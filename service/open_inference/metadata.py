"""Metadata of server and models in the Open Inference Protocol, as JSON.

The gRPC messages have the same fields.

Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md,
triton-inference-server/server docs/protocol/extension_model_configuration.md.
"""

from typing import Any

from service.inference.served_models import ServedModel
from service.open_inference.tensors import OUTPUT, VERSION, InputSpec, input_specs
from tasks.table import TASKS

_CONFIG_TYPES = {
    "BYTES": "TYPE_STRING",
    "INT64": "TYPE_INT64",
    "FP64": "TYPE_FP64",
    "BOOL": "TYPE_BOOL",
}

JsonObject = dict[str, Any]


def server_metadata() -> JsonObject:
    """Return name, version and supported extensions."""
    extensions = ["binary_tensor_data", "model_configuration", "parameters"]
    return {"name": "diptych", "version": "1", "extensions": extensions}


def model_metadata(model: ServedModel) -> JsonObject:
    """Return the output of a model and the inputs of all its tasks."""
    inputs = [
        {"name": spec.name, "datatype": spec.datatypes[0], "shape": _shape(spec)}
        for spec in _specs(model).values()
    ]
    output = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    return {**_names(model), "versions": [VERSION], "inputs": inputs, "outputs": [output]}


def model_config(model: ServedModel) -> JsonObject:
    """Return the part of Triton's model configuration that its load tools read."""
    inputs = [
        {
            "name": spec.name,
            "data_type": _CONFIG_TYPES[spec.datatypes[0]],
            "dims": _shape(spec),
            "optional": not spec.is_required,
        }
        for spec in _specs(model).values()
    ]
    output = {"name": OUTPUT, "data_type": "TYPE_STRING", "dims": [1]}
    return {**_names(model), "max_batch_size": 0, "input": inputs, "output": [output]}


def _specs(model: ServedModel) -> dict[str, InputSpec]:
    return input_specs(TASKS[task_id] for task_id in model.entry.task_ids)


def _shape(spec: InputSpec) -> list[int]:
    return [-1 if spec.length is None else spec.length]


def _names(model: ServedModel) -> JsonObject:
    return {"name": model.id, "platform": f"diptych_{model.entry.family}"}
