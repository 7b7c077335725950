"""The readers of foreign bytes that are fuzzed.

An input of several parts has `_SPLIT` between them.
"""

import asyncio
import io
import json
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from google.protobuf.message import DecodeError
from PIL import Image
from safetensors.torch import save, save_file

from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.long_runs import AppendLog, RunError
from imaging.errors import ImageError
from imaging.files import ImageLimits, decode_image, read_header
from offline.filesystems import StoredFile
from offline.shards import ArchiveShard, Unreadable, images_of
from runners.adapters.peft import read_parts
from service.admission.api_keys import parse_keys
from service.analysis import StepObject, parse_plan
from service.batches.input_file import parse_line
from service.batches.uploads import read_upload
from service.errors import ServiceError
from service.http.body import json_object, read_images_body
from service.images.inputs import AllowedHost, HandleIds, ImageHandle, check_url, file_or_handle
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.served_models import ServedModels
from service.label_studio.labelling_config import parse_config
from service.open_inference.http_api import read_request
from service.rpc.proto import vision_pb2 as pb
from service.rpc.vision import request_fields
from service.settings import SettingsError
from tasks.tiles.grid import Tiling, grid_of, tile_boxes
from tests.support.fake_service import encoded, served_models
from tests.support.fuzzing import Target
from tests.support.request_bodies import (
    FORM,
    IMAGE,
    JSON,
    file_part,
    form,
    memory,
    part,
    read,
    request,
)
from wire.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits
from wire.artifacts.manifest import ArtifactError
from wire.pixels import BadCall, read_call

_LIMITS = ImageLimits(1_000_000)
_LAYER = "model.language_model.layers.0.self_attn.q_proj"
_SPLIT = b"\n--\n"


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of the bytes of a file of this name in a new folder."""

    def read_file(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            read(path)

    return read_file


def _of_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "replace"))


def _two_parts(data: bytes) -> tuple[bytes, bytes]:
    first, _, second = data.partition(_SPLIT)
    return first, second


def _image(data: bytes) -> None:
    read_header(data, _LIMITS)
    decode_image(data, _LIMITS)


def _upload(path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield path.read_bytes()

    asyncio.run(read_upload(FORM, chunks(), path.with_name("file")))


def _adapter(path: Path) -> None:
    config, weights = _two_parts(path.read_bytes())
    path.with_name(CONFIG_FILE).write_bytes(config)
    path.with_name(WEIGHTS_FILE).write_bytes(weights)
    base = path.with_name("decoder.safetensors")
    save_file({f"{_LAYER}.weight": torch.zeros(4, 6)}, base)
    read_parts(path.parent, base, AdapterLimits())


def _dataset(path: Path) -> None:
    is_folder = path.parent.name == "Annotations"
    folder = path.parent.parent if is_folder else path.parent
    for images in (folder, folder / "images"):
        images.mkdir(exist_ok=True)
        (images / "a.png").write_bytes(_pictures()[-1])
    read_dataset(folder if is_folder else path, images=None)


def _journal(path: Path) -> None:
    with AppendLog.open(path, "job") as log:
        list(log.values())


def _archive(path: Path) -> None:
    for image in images_of(ArchiveShard(StoredFile(str(path.parent), str(path)))):
        image.read()


def _open_inference(data: bytes) -> None:
    header, body = _two_parts(data)
    read_request(body, header.decode("latin-1") or None)


def _call(data: bytes) -> None:
    header, body = _two_parts(data)
    read_call(body, header.decode("latin-1") or None, (2, 2, 3))


def _fields(data: bytes) -> None:
    fields, _ = parse_fields(PredictFields, json_object(data))
    if fields.tiles == "off":
        return
    tiling = Tiling(fields.tiles, fields.overlap, fields.min_object_px)
    for width, height in ((1, 1), (640, 480), (9000, 7)):
        grid = grid_of(tiling, (width, height), min_object_share=1 / 24, max_tiles=64)
        for left, top, right, bottom in tile_boxes(grid, (width, height), tiling.overlap):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def _plan(document: Mapping[str, object]) -> None:
    plan = parse_plan(document, _models(), max_steps=16)
    plan.check_prompts((640, 480))
    texts = {"label": "{label}<loc_1>", "text": "detect a"}
    for step in plan.steps:
        about = StepObject((1.0, 2.0, 30.0, 40.0), texts, 0.5)
        step.request(None if step.options.each is None else about)


def _images(content_type: str) -> Callable[[bytes], object]:
    def read_images(data: bytes) -> object:
        return asyncio.run(read_images_body(request([data], content_type), memory()))

    return read_images


def _image_id(data: bytes) -> None:
    handle = file_or_handle(data)
    if isinstance(handle, ImageHandle):
        assert HandleIds(b"secret").name("owner", handle) is None, "an id was guessed"


@cache
def _models() -> ServedModels:
    return served_models()


@cache
def _pictures() -> tuple[bytes, ...]:
    picture = Image.new("RGB", (9, 7), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        encoded(picture, "JPEG", quality=30),
        encoded(picture, "JPEG", quality=30, progressive=True),
        encoded(picture, "PNG", exif=exif),
        encoded(picture, "WEBP"),
        encoded(picture, "PNG"),
    )


def _adapter_seed() -> bytes:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none"}
    config["target_modules"] = ["q_proj"]
    name = f"base_model.model.{_LAYER}"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 6), f"{name}.lora_B.weight": torch.ones(4, 1)}
    return json.dumps(config).encode() + _SPLIT + save(tensors)


def _tar_seed() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(IMAGE)
        archive.addfile(member, io.BytesIO(IMAGE))
    return file.getvalue()


def _parquet_seed() -> bytes:
    file = io.BytesIO()
    rows = {"image": [{"bytes": IMAGE, "path": "a.png"}], "caption": ["two cats"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), file)
    return file.getvalue()


_POLYGON = {"segmentation": [[1, 2, 3, 4, 5, 6]]}
_COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **_POLYGON}],
}
_LINES = (
    b'{"image": "a.png", "question": "how many?", "answers": ["2", "two"]}\n',
    b'{"image": "a.png", "phrases": [{"phrase": "cat", "box": [1, 2, 3, 4]}]}\n',
    b'{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}}\n',
)
_VOC = (
    b"<annotation><filename>a.png</filename><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
    b"<xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"
)
_CONFIG = (
    b'<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
    b'<Label value="Car" predicted_values="red car,blue car"/></RectangleLabels></View>'
)
_INFER = (
    b'{"inputs": [{"name": "task", "shape": [1], "datatype": "BYTES", "data": ["ocr"]}, '
    b'{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]}'
)
_WRITE = b'{"sequences": [{"segments": [["what?", true]], "timeout_s": 1}]}'
_BATCH_LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/predict", "body": {"task": "ocr"}}'
_FIELDS = (
    b'{"task": "open_vocabulary_detection", "labels": ["cat"], "min_score": 0.5, "temperature": 1,'
    b' "seed": 3}'
)
_TILED_FIELDS = (
    b'{"task": "object_detection", "tiles": {"rows": 2, "columns": 3}, "overlap": 0.3,'
    b' "min_object_px": 8}'
)
_STEPS: dict[str, Any] = {
    "steps": [
        {"id": "things", "task": "object_detection", "min_score": 0.5, "tiles": "2x3"},
        {"id": "what", "task": "region_description", "each": "things", "max_each": 5},
        {"id": "mask", "task": "instance_segmentation", "each": "things", "phrase": "{label}"},
        {"id": "text", "task": "ocr", "each": "things", "view": "crop", "margin": 0.2},
    ]
}


def _service(read: Callable[[bytes], object], *seeds: bytes) -> Target:
    return Target(read, (ServiceError,), seeds)


def _labels(name: str, *seeds: bytes) -> Target:
    # the command line prints these errors (client/diptych_client/cli/app.py)
    return Target(_in_file(name, _dataset), (RunError, OSError, ValueError), seeds)


_UPLOAD = form(part("purpose", "batch"), part("file", _BATCH_LINE, '; filename="a.jsonl"'))
_IMAGES = form(file_part("images", IMAGE), file_part("images", IMAGE), part("steps", "[{}]"))
_MESSAGE = pb.AnalyzeRequest(image=IMAGE, images=[IMAGE], **_STEPS).SerializeToString()
_KEY = b"ab" * 32 + b" name=a requests_per_minute=5 max_concurrent=2\n"
_CALLS = (_SPLIT + _WRITE, str(len(_WRITE)).encode() + _SPLIT + _WRITE + bytes(12))
_URLS = (b"https://example.org:443/a.png?b=c", b"http://[2001:db8::1]/a")
_ANY_HOST = [AllowedHost("*")]

TARGETS = {
    "image": Target(_image, (ImageError,), _pictures()),
    "form": _service(
        lambda data: read(data, FORM), form(file_part("image", IMAGE), part("labels", '["a"]'))
    ),
    "json": _service(
        lambda data: read(data, JSON), b'{"image": "QUJD", "task": "ocr", "x": [1.5]}'
    ),
    "fields": _service(_fields, _FIELDS, _TILED_FIELDS),
    "steps": _service(lambda data: _plan(json_object(data)), json.dumps(_STEPS).encode()),
    "steps_message": Target(
        lambda data: _plan(request_fields(pb.AnalyzeRequest.FromString(data))),
        (ServiceError, DecodeError),
        (_MESSAGE,),
    ),
    "images_form": _service(_images(FORM), _IMAGES),
    "images_json": _service(_images(JSON), b'{"images": ["QUJD", "img_0"], "steps": [{}]}'),
    "image_id": Target(_image_id, (), (b"img_" + b"0a" * 24,)),
    "image_url": _service(_of_text(lambda url: check_url(url, _ANY_HOST)), *_URLS),
    "labelling_config": _service(_of_text(parse_config), _CONFIG),
    "batch_line": _service(parse_line, _BATCH_LINE),
    "batch_upload": _service(_in_file("body", _upload), _UPLOAD),
    "open_inference": _service(
        _open_inference, str(len(_INFER)).encode() + _SPLIT + _INFER + b"\1\0\0\0a"
    ),
    "runner_call": Target(_call, (BadCall,), _CALLS),
    "key_file": Target(_of_text(parse_keys), (SettingsError,), (_KEY,)),
    "adapter": Target(_in_file("parts", _adapter), (ArtifactError,), (_adapter_seed(),)),
    "coco": _labels("a.json", json.dumps(_COCO).encode()),
    "json_lines": _labels("a.jsonl", *_LINES),
    "voc": _labels("Annotations/a.xml", _VOC),
    "yolo": _labels("data.yaml", b"path: .\ntrain: images\nnames:\n  0: cat\n"),
    "parquet": _labels("a.parquet", _parquet_seed()),
    "journal": Target(
        _in_file("journal.jsonl", _journal),
        (RunError,),
        (b'{"job": {}}\n{"image": "a.png", "answer": {}}\n',),
    ),
    "archive": Target(_in_file("shard.tar", _archive), (Unreadable, OSError), (_tar_seed(),)),
}
