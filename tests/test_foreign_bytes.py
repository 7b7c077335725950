"""Foreign bytes are read or refused by a declared error: valid ones, a fuzzer's, changed ones."""

import asyncio
import io
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.long_runs import AppendLog, RunError
from imaging.containers import ImageError
from imaging.files import ImageLimits, decode_image, read_header
from offline.filesystems import StoredFile
from offline.shards import ArchiveShard, images_of
from runners.adapters.peft import read_parts
from service.admission.api_keys import parse_keys
from service.analysis import StepObject, check_prompts, parse_plan
from service.errors import ServiceError
from service.http.body import json_object, read_body
from service.inference.request_fields import PredictFields, parse_fields
from service.label_studio.mapping import parse_config
from service.outbound.urls import AllowedHost, check_url
from service.settings import SettingsError
from tests.support.evaluations import write_coco, write_images, write_parquet, write_voc
from tests.support.fake_service import served_models
from tests.support.image_files import colour_steps, encoded
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
from wire.pixels import read_call

CORPUS = Path(__file__).parent / "support" / "fuzz_corpus"
SPLIT = b"\n--\n"  # between the parts of an input
MAX_CPU_S = 1.0
LAYER = "model.language_model.layers.0.self_attn.q_proj"
MODELS = served_models()
TROUBLESOME = (b"", b"\0", b"\xff\xff\xff\xff", b"-1", b"1e999", b"null", b"[]", b'"', b"}", SPLIT)
Read = Callable[[bytes], object]


class Reader(NamedTuple):
    """A reader, the errors that it declares, and valid inputs."""

    read: Read
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def in_file(name: str, read: Callable[[Path], object], data: bytes) -> None:
    """Read a file of this name in a new folder."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        read(path)


def file_of(write: Callable[[Path], Path], name: str) -> bytes:
    """Return a file of a labelled dataset."""
    with TemporaryDirectory() as folder:
        return (write(Path(folder)) / name).read_bytes()


def of_text(read: Callable[[str], object]) -> Read:
    return lambda data: read(data.decode("utf-8", "replace"))


def of_two_parts(read: Callable[[bytes, str | None], object], data: bytes) -> None:
    """Read a body and the header before it."""
    header, _, body = data.partition(SPLIT)
    read(body, header.decode("latin-1") or None)


def read_image(data: bytes) -> None:
    limits = ImageLimits(1_000_000)
    read_header(data, limits)
    decode_image(data, limits)


def read_steps(data: bytes) -> None:
    steps = parse_plan(json_object(data), MODELS)
    check_prompts(steps, (640, 480))
    texts = {"label": "{label}<loc_1>", "text": "detect a"}
    for step in steps:
        about = StepObject((1.0, 2.0, 30.0, 40.0), texts, 0.5)
        step.request(None if step.options.each is None else about)


def read_adapter(path: Path) -> None:
    config, _, weights = path.read_bytes().partition(SPLIT)
    path.with_name(CONFIG_FILE).write_bytes(config)
    path.with_name(WEIGHTS_FILE).write_bytes(weights)
    base = path.with_name("decoder.safetensors")
    save_file({f"{LAYER}.weight": torch.zeros(4, 6)}, base)
    read_parts(path.parent, base, AdapterLimits())


def read_labels(path: Path) -> None:
    is_folder = path.parent.name == "Annotations"
    folder = path.parent.parent if is_folder else path.parent
    for images in ("", "images", "JPEGImages"):
        write_images(folder / images)
    read_dataset(folder if is_folder else path, images=None)


def read_journal(path: Path) -> None:
    with AppendLog.open(path, "key") as log:
        list(log.values())


def read_archive(path: Path) -> None:
    for image in images_of(ArchiveShard(StoredFile(str(path.parent), str(path)))):
        image.read()


def of_service(read: Read, *seeds: bytes) -> Reader:
    return Reader(read, (ServiceError,), seeds)


def of_labels(name: str, *seeds: bytes) -> Reader:
    # the command line prints these errors (client/diptych_client/tools/cli/app.py)
    return Reader(partial(in_file, name, read_labels), (RunError, OSError, ValueError), seeds)


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(IMAGE)
        archive.addfile(member, io.BytesIO(IMAGE))
    return file.getvalue()


PICTURES = (
    encoded(colour_steps(), "JPEG", quality=30, progressive=True),
    encoded(colour_steps(), "WEBP"),
    encoded(colour_steps(), "PNG"),
)
STEPS = (
    b'{"steps": [{"id": "a", "task": "object_detection", "min_score": 0.5, "tiles": "2x3"},'
    b' {"id": "b", "task": "region_description", "each": "a", "max_each": 5},'
    b' {"id": "c", "task": "instance_segmentation", "each": "a", "phrase": "{label}"},'
    b' {"id": "d", "task": "ocr", "each": "a", "view": "crop", "margin": 0.2}]}'
)
CALL = b'{"sequences": [{"segments": [["what?", true]], "timeout_s": 1}]}'
ADAPTER = (
    b'{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none", "target_modules": ["q_proj"]}'
)
PRODUCTS = {
    f"base_model.model.{LAYER}.lora_A.weight": torch.ones(1, 6),
    f"base_model.model.{LAYER}.lora_B.weight": torch.ones(4, 1),
}

READERS = {
    "image": Reader(read_image, (ImageError,), PICTURES),
    "form": of_service(
        lambda data: read(data, FORM), form(file_part("image", IMAGE), part("labels", '["a"]'))
    ),
    "json": of_service(
        lambda data: read(data, JSON), b'{"image": "QUJD", "task": "ocr", "x": [1.5]}'
    ),
    "fields": of_service(
        lambda data: parse_fields(PredictFields, json_object(data)),
        b'{"task": "open_vocabulary_detection", "labels": ["cat"], "temperature": 1, "seed": 3}',
        b'{"task": "object_detection", "tiles": {"rows": 2, "columns": 3}, "overlap": 0.3}',
    ),
    "steps": of_service(read_steps, STEPS),
    "images_form": of_service(
        lambda data: asyncio.run(read_body(request([data], FORM), memory(), 32)),
        form(file_part("images", IMAGE), file_part("images", IMAGE), part("steps", "[{}]")),
    ),
    "image_url": of_service(
        of_text(lambda url: check_url(url, [AllowedHost("*")])),
        b"https://example.org:443/a.png?b=c",
        b"http://[2001:db8::1]/a",
    ),
    "labelling_config": of_service(
        of_text(parse_config),
        b'<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
        b'<Label value="Car" predicted_values="red car,blue car"/></RectangleLabels></View>',
    ),
    "runner_call": Reader(
        partial(of_two_parts, lambda body, header: read_call(body, header, (2, 2, 3))),
        (ValueError,),
        (SPLIT + CALL, str(len(CALL)).encode() + SPLIT + CALL + bytes(12)),
    ),
    "key_file": Reader(
        of_text(parse_keys),
        (SettingsError,),
        (b"ab" * 32 + b" name=a requests_per_minute=5 max_concurrent=2\n",),
    ),
    "adapter": Reader(
        partial(in_file, "parts", read_adapter),
        (ArtifactError,),
        (ADAPTER + SPLIT + save(PRODUCTS),),
    ),
    "coco": of_labels("a.json", file_of(write_coco, "annotations.json")),
    "json_lines": of_labels(
        "a.jsonl",
        b'{"image": "a.png", "question": "how many?", "answers": ["2", "two"]}\n',
        b'{"image": "a.png", "phrases": [{"phrase": "cat", "box": [1, 2, 3, 4]}]}\n',
    ),
    "voc": of_labels("Annotations/a.xml", file_of(write_voc, "Annotations/a.xml")),
    "yolo": of_labels("data.yaml", b"path: .\ntrain: images\nnames:\n  0: cat\n"),
    "parquet": of_labels("a.parquet", file_of(write_parquet, "val-00000-of-00001.parquet")),
    "journal": Reader(
        partial(in_file, "journal.jsonl", read_journal),
        (RunError,),
        (b'{"key": "a", "image": "a.png", "answer": {}}\n',),
    ),
    "archive": Reader(partial(in_file, "shard.tar", read_archive), (OSError,), (archive(),)),
}


def check(reader: Reader, data: bytes) -> None:
    start_s = time.process_time()
    with suppress(*reader.errors):
        reader.read(data)
    assert time.process_time() - start_s < MAX_CPU_S


@pytest.mark.parametrize("name", READERS)
def test_valid_inputs_are_read(name: str) -> None:
    for seed in READERS[name].seeds:
        READERS[name].read(seed)


def test_inputs_of_a_fuzzer() -> None:
    for file in sorted(CORPUS.glob("*/*")):
        check(READERS[file.parent.name], file.read_bytes())


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("unit", [b"[", b'{"a":', b"<a>", b"- "])
def test_deep_inputs(name: str, unit: bytes) -> None:
    check(READERS[name], unit * 5_000)  # a tenth of the limit on an idle machine


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_inputs(name: str, data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(READERS[name].seeds))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(changed)))
        end = start + data.draw(st.integers(0, 8) | st.integers(0, len(changed)))
        middle = data.draw(st.sampled_from(TROUBLESOME) | st.binary(max_size=8))
        changed = changed[:start] + middle + changed[end:]
    check(READERS[name], changed)
