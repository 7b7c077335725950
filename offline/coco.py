"""All rows of an output as one COCO document, written in pieces: its size is not bounded by memory.

Ids of images and categories count from 1, in the order of the input and of the first objects. An
image that failed has no entry; it is a row of its shard, with the error.
"""

import json
from collections.abc import Iterator
from typing import IO, Any

from offline.output import Output
from tasks.results import RunLengthMask
from tasks.run_length import decode_mask

NAME = "annotations.json"
_UNNAMED = "object"  # the category of a task without labels


def write_coco(output: Output) -> None:
    category_ids: dict[str, int] = {}
    answered = ((number, row) for number, row in output.rows() if row.error is None)
    images = (
        {"id": n, "file_name": r.key, "width": r.width, "height": r.height} for n, r in answered
    )

    def write(stream: IO[bytes]) -> None:
        stream.write(b'{"images": [')
        _write_list(stream, images)
        stream.write(b'], "annotations": [')
        _write_list(stream, _annotations(output, category_ids))
        categories = [{"id": number, "name": name} for name, number in category_ids.items()]
        text = json.dumps(categories, ensure_ascii=False)
        stream.write(b'], "categories": ' + text.encode() + b"}\n")

    output.write(NAME, write)


def _write_list(stream: IO[bytes], values: Iterator[dict[str, Any]]) -> None:
    for index, value in enumerate(values):
        stream.write((b",\n" if index else b"\n") + json.dumps(value, ensure_ascii=False).encode())


def _annotations(output: Output, category_ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the annotation of every object; new categories are added to `category_ids`."""
    annotation_id = 0
    for image_id, row in output.rows():
        result = row.result or {}
        objects: list[dict[str, Any]] = result.get("detections") or result.get("instances") or []
        for value in objects:
            annotation_id += 1
            category_id = category_ids.setdefault(value["label"] or _UNNAMED, len(category_ids) + 1)
            ids = {"id": annotation_id, "image_id": image_id, "category_id": category_id}
            x1, y1, x2, y2 = value["box"]
            bbox = [x1, y1, x2 - x1, y2 - y1]
            shape = {"bbox": bbox, "area": bbox[2] * bbox[3], "segmentation": []}
            if mask := value.get("mask"):
                height, width = mask["size"]
                area = int(decode_mask(RunLengthMask((height, width), mask["counts"])).sum())
                shape |= {"area": area, "segmentation": mask}
            yield {**ids, **shape, "score": value["score"], "iscrowd": 0}
