"""FiftyOne's samples.json beside data/ (docs.voxel51.com, "Exporting datasets", FiftyOneDataset).

Of the fields with detections `ground_truth` is read, or the first; its masks are not. A box is
[x, y, width, height] in parts of the image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    upright_size,
)


def read_fiftyone(path: Path, selection: Selection) -> Dataset | None:
    document = selection.json(path)
    samples = document.get("samples") if isinstance(document, Mapping) else None
    if not isinstance(samples, list):
        return None
    store = selection.store(path.parent)

    def read(sample: Any, place: str) -> LabelledImage:
        image = store.image(sample["filepath"])
        fields = []
        for name, value in sample.items():
            if isinstance(value, Mapping) and "detections" in value:
                fields.append(name)
        fields.sort(key=lambda name: name != "ground_truth")
        for name in fields[1:]:
            selection.problems.count(f"field {name:.40} not read")
        if not fields:
            return LabelledImage(image)
        width, height = upright_size(store.path / image.name)

        def read_object(detection: Any) -> TrueObject:
            x, y, dx, dy = map(float, detection["bounding_box"])
            edges = (x * width, y * height, (x + dx) * width, (y + dy) * height)
            return TrueObject.boxed(detection["label"], edges, bool(detection.get("iscrowd")))

        detections = sample[fields[0]]["detections"]
        return LabelledImage(image, selection.objects(place, detections, read_object))

    return Dataset(selection.labelled_images(path, samples, read), store)
