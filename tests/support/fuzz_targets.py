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
from service.analysis.steps import StepObject, parse_plan
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


def _image(data: bytes) -> None:
    read_header(data, _LIMITS)
    decode_image(data, _LIMITS)


def _upload(data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(read_upload(FORM, chunks(), Path(folder, "file")))


def _two_parts(data: bytes) -> tuple[bytes, bytes]:
    first, _, second = data.partition(_SPLIT)
    return first, second


def _adapter(data: bytes) -> None:
    config, weights = _two_parts(data)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG_FILE).write_bytes(config)
        Path(folder, WEIGHTS_FILE).write_bytes(weights)
        base = Path(folder, "decoder.safetensors")
        save_file({f"{_LAYER}.weight": torch.zeros(4, 6)}, base)
        read_parts(Path(folder), base, AdapterLimits())


def _dataset(name: str) -> Callable[[bytes], object]:
    def read_file(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            images = Path(folder, "images")
            for each in (path.parent, images):
                each.mkdir(exist_ok=True)
            for each in (Path(folder), images):
                (each / "a.png").write_bytes(_pictures()[-1])
            path.write_bytes(data)
            read_dataset(Path(folder) if name.startswith("Annotations/") else path, images=None)

    return read_file


def _journal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        path.write_bytes(data)
        with AppendLog.open(path, "job") as log:
            for _ in log.values():
                pass


def _archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shard.tar")
        path.write_bytes(data)
        for image in images_of(ArchiveShard(StoredFile(folder, str(path)))):
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
    jpeg = encoded(picture, "JPEG", quality=30)
    progressive = encoded(picture, "JPEG", quality=30, progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    formats = ("WEBP", "PNG")
    return (
        jpeg,
        progressive,
        encoded(picture, "PNG", exif=exif),
        *(encoded(picture, each) for each in formats),
    )


def _adapter_seed() -> bytes:
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 2,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
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


_COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 2, 3, 4],
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
    ],
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
# the command line prints them (client/diptych_client/cli/app.py)
_DATASET_ERRORS = (RunError, OSError, ValueError)

TARGETS = {
    "image": Target(_image, (ImageError,), _pictures()),
    "form": Target(
        lambda data: read(data, FORM),
        (ServiceError,),
        (form(file_part("image", IMAGE), part("labels", '["a"]')),),
    ),
    "json": Target(
        lambda data: read(data, JSON),
        (ServiceError,),
        (b'{"image": "QUJD", "task": "ocr", "x": [1.5]}',),
    ),
    "fields": Target(_fields, (ServiceError,), (_FIELDS, _TILED_FIELDS)),
    "steps": Target(
        lambda data: _plan(json_object(data)), (ServiceError,), (json.dumps(_STEPS).encode(),)
    ),
    "steps_message": Target(
        lambda data: _plan(request_fields(pb.AnalyzeRequest.FromString(data))),
        (ServiceError, DecodeError),
        (pb.AnalyzeRequest(image=IMAGE, images=[IMAGE], **_STEPS).SerializeToString(),),
    ),
    "images_form": Target(
        _images(FORM),
        (ServiceError,),
        (form(file_part("images", IMAGE), file_part("images", IMAGE), part("steps", "[{}]")),),
    ),
    "images_json": Target(
        _images(JSON), (ServiceError,), (b'{"images": ["QUJD", "img_0"], "steps": [{}]}',)
    ),
    "image_id": Target(_image_id, (), (b"img_" + b"0a" * 24,)),
    "image_url": Target(
        lambda data: check_url(data.decode("utf-8", "replace"), [AllowedHost("*")]),
        (ServiceError,),
        (b"https://example.org:443/a.png?b=c", b"http://[2001:db8::1]/a"),
    ),
    "labelling_config": Target(
        lambda data: parse_config(data.decode("utf-8", "replace")), (ServiceError,), (_CONFIG,)
    ),
    "batch_line": Target(parse_line, (ServiceError,), (_BATCH_LINE,)),
    "batch_upload": Target(
        _upload,
        (ServiceError,),
        (form(part("purpose", "batch"), part("file", _BATCH_LINE, '; filename="a.jsonl"')),),
    ),
    "open_inference": Target(
        _open_inference,
        (ServiceError,),
        (str(len(_INFER)).encode() + _SPLIT + _INFER + b"\1\0\0\0a",),
    ),
    "runner_call": Target(
        _call,
        (BadCall,),
        (_SPLIT + _WRITE, str(len(_WRITE)).encode() + _SPLIT + _WRITE + bytes(12)),
    ),
    "key_file": Target(
        lambda data: parse_keys(data.decode("utf-8", "replace")),
        (SettingsError,),
        (b"ab" * 32 + b" name=a requests_per_minute=5 max_concurrent=2\n",),
    ),
    "adapter": Target(_adapter, (ArtifactError,), (_adapter_seed(),)),
    "coco": Target(_dataset("a.json"), _DATASET_ERRORS, (json.dumps(_COCO).encode(),)),
    "json_lines": Target(_dataset("a.jsonl"), _DATASET_ERRORS, _LINES),
    "voc": Target(_dataset("Annotations/a.xml"), _DATASET_ERRORS, (_VOC,)),
    "yolo": Target(
        _dataset("data.yaml"), _DATASET_ERRORS, (b"path: .\ntrain: images\nnames:\n  0: cat\n",)
    ),
    "parquet": Target(_dataset("a.parquet"), _DATASET_ERRORS, (_parquet_seed(),)),
    "journal": Target(_journal, (RunError,), (b'{"job": {}}\n{"image": "a.png", "answer": {}}\n',)),
    "archive": Target(_archive, (Unreadable, OSError), (_tar_seed(),)),
}
