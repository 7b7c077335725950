"""Remote source of FiftyOne's model zoo: the model `diptych`, whose weights are those of a running
service.

There is nothing to download: the file of the model, which FiftyOne requires, is the manifest
itself.
"""

from typing import Any

from diptych_client.integrations.fiftyone_model import DiptychModel


def load_model(_model_name: str, _model_path: str | None, **options: Any) -> DiptychModel:
    """Return the model; `options` are the arguments of `DiptychModel`."""
    return DiptychModel(**options)
