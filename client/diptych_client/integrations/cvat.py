"""Auto-annotation function of CVAT: `--function-module diptych_client.integrations.cvat`.

Needs the extra `cvat`. cvat-cli calls `create` with the values of its option `-p`.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import LabeledShapeRequest
from PIL import Image, ImageOps

from diptych_client.clients.client import Client
from diptych_client.integrations.outlines import outer_rings, simplified_ring
from diptych_client.requests import AnswerOptions, TaskParameters, read_api_key
from diptych_client.results import Instance, InstancesResult

_SHAPES = ("rectangle", "polygon", "mask")
_TOLERANCE_PX = 1.0  # simplifies masks: nobody can edit hundreds of points


class DiptychFunction:
    """Finds boxes by open-vocabulary detection, outlines by instance segmentation.

    Each label is the text that the model is asked for.
    """

    def __init__(self, client: Client, labels: list[str], shape: str, model: str | None) -> None:
        self._client = client
        self._label_ids = {label: index for index, label in enumerate(labels)}
        self._shape = shape
        self._model = model

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        ids = self._label_ids.items()
        labels = [cvataa.label_spec(label, index, type=self._shape) for label, index in ids]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def close(self) -> None:
        self._client.close()

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> list[LabeledShapeRequest]:
        """Return the shapes of one image; raise `DiptychError`, which ends the run."""
        upright = ImageOps.exif_transpose(image)
        options = AnswerOptions(min_score=context.conf_threshold)
        predict = partial(self._client.predict, upright, model=self._model, options=options)
        shapes: list[LabeledShapeRequest] = []
        if self._shape == "rectangle":
            labels = list(self._label_ids)
            answer = predict("open_vocabulary_detection", TaskParameters(labels=labels))
            for item in answer.result.items:
                label_id = self._label_ids.get(item.label)
                if label_id is not None:  # some engines' models write other labels
                    box = list(item.box_xyxy)
                    shapes.append(cvataa.rectangle(label_id, box, score=item.rank))
            return shapes
        for label, label_id in self._label_ids.items():
            answer = predict("instance_segmentation", TaskParameters(phrase=label))
            assert isinstance(answer.result, InstancesResult)
            for instance in answer.result.instances:
                if self._shape == "polygon" or context.conv_mask_to_poly:
                    shapes += _polygons(instance, label_id)
                elif (mask := instance.to_mask(answer.image)).any():
                    shapes.append(cvataa.mask(label_id, encode_mask(mask), score=instance.score))
        return shapes


def _polygons(instance: Instance, label_id: int) -> Iterator[LabeledShapeRequest]:
    """Yield a polygon for each outer ring: CVAT's polygons have no holes."""
    for ring in outer_rings(instance.polygons_xy or ()):
        points = list(chain.from_iterable(simplified_ring(ring, _TOLERANCE_PX)))
        yield cvataa.polygon(label_id, points, score=instance.score)


def create(
    labels: str,
    shape: str = "rectangle",
    model: str | None = None,
    url: str = "http://localhost:3000",
    api_key_file: str | None = None,
    timeout_s: float = 60.0,
) -> DiptychFunction:
    """Return the function for comma-separated labels; raise `ValueError`."""
    names = list(dict.fromkeys(filter(None, map(str.strip, labels.split(",")))))
    if not names:
        raise ValueError(f"labels must be comma-separated names, got {labels!r}")
    if shape not in _SHAPES:
        raise ValueError(f"shape must be one of {', '.join(_SHAPES)}, got {shape!r}")
    api_key = None if api_key_file is None else read_api_key(Path(api_key_file))
    return DiptychFunction(Client(url, api_key=api_key, timeout_s=timeout_s), names, shape, model)
