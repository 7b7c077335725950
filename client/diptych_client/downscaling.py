"""Images that are too large for a service are sent smaller, and answers scaled back.

Knows no connection. Only JPEG, PNG and WebP files are opened; the service refuses any other.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import ImageOps
from PIL.ImageFile import ImageFile as OpenedImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from diptych_client.geometry import (
    BoxXyxy,
    ImageSize,
    RunLengthMask,
    compressed_run_lengths,
    run_length_mask,
    uncompressed_run_lengths,
)
from diptych_client.results import (
    Answer,
    Comparison,
    DetectionsResult,
    InstancesResult,
    Result,
    TextRegionsResult,
)

DEFAULT_MAX_PIXELS = 50_000_000  # DIPTYCH_MAX_IMAGE_PIXELS of a service, by default
_MAX_SIDE_PX = 20_000  # DIPTYCH_MAX_IMAGE_SIDE_PX
_MAX_BYTES = 19_900_000  # DIPTYCH_MAX_BODY_BYTES, without the other fields
_MAX_OPENED_PIXELS = 2_000_000_000
_JPEG_QUALITY = 90
_READERS: dict[bytes, Callable[[io.BytesIO], OpenedImage]] = {
    b"\xff\xd8": JpegImageFile,
    b"\x89P": PngImageFile,
    b"RI": WebPImageFile,
}

logger = logging.getLogger("diptych_client")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Downscaled:
    """A smaller JPEG, the size of the upright original, and the scale between them."""

    data: bytes
    original: ImageSize
    scale: float


def downscaled(data: bytes, max_pixels: int, name: str) -> Downscaled | None:
    """Return a smaller image, or None if the file is small enough or not an image."""
    reader = _READERS.get(data[:2])
    try:
        # not Image.open, whose limit is one of the whole process
        return (
            None if reader is None else _smaller(reader(io.BytesIO(data)), data, max_pixels, name)
        )
    except (OSError, SyntaxError, ValueError, MemoryError):  # damaged: the service says how
        return None


def _smaller(image: OpenedImage, data: bytes, max_pixels: int, name: str) -> Downscaled | None:
    width, height = image.size
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), _MAX_SIDE_PX / max(image.size))
    is_small = scale == 1 and len(data) <= _MAX_BYTES
    if is_small or width * height > _MAX_OPENED_PIXELS:
        return None
    image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
    upright = ImageOps.exif_transpose(image).convert("RGB")
    original = ImageSize(width, height)
    if (upright.width > upright.height) != (width > height):
        original = ImageSize(height, width)
    while True:
        size_wh = (max(1, int(original.width * scale)), max(1, int(original.height * scale)))
        file = io.BytesIO()
        upright.resize(size_wh, reducing_gap=2.0).save(file, "JPEG", quality=_JPEG_QUALITY)
        if file.tell() <= _MAX_BYTES:
            break
        scale *= 0.8
    sent = f"sent as {size_wh[0]} x {size_wh[1]}, its answer is in the original's pixels"
    logger.warning("%s has %d x %d pixels; %s", name, original.width, original.height, sent)
    return Downscaled(file.getvalue(), original, scale)


def restored(result: ResultT, original: ImageSize | None) -> ResultT:
    """Return an answer, or each of a comparison, in pixels of the original."""
    scaled: object = result
    if original is None:
        return result
    if isinstance(result, Comparison):
        answers = tuple(restored(answer, original) for answer in result.answers)
        scaled = replace(result, image=original, answers=answers)
    elif isinstance(result, Answer):
        original_result = _scaled(result.result, result.image, original)
        scaled = replace(result, image=original, result=original_result)
    return scaled  # type: ignore[return-value]


def _scaled(result: Result, sent: ImageSize, original: ImageSize) -> Result:
    scale = np.array([original.width / sent.width, original.height / sent.height])

    def points(ring: Sequence[Sequence[float]]) -> Any:
        return tuple(map(tuple, (np.array(ring) * scale).tolist()))

    def box(edges: BoxXyxy) -> Any:
        (x1, y1), (x2, y2) = points((edges[:2], edges[2:]))
        return (x1, y1, x2, y2)

    match result:
        case DetectionsResult(detections):
            boxes = [replace(item, box_xyxy=box(item.box_xyxy)) for item in detections]
            return DetectionsResult(tuple(boxes))
        case InstancesResult(instances):
            scaled = []
            for item in instances:
                rings = None if item.polygons_xy is None else tuple(map(points, item.polygons_xy))
                mask = None if item.mask is None else _enlarged(item.mask, original)
                edges = box(item.box_xyxy)
                scaled.append(replace(item, box_xyxy=edges, polygons_xy=rings, mask=mask))
            return InstancesResult(tuple(scaled))
        case TextRegionsResult(regions):
            quads = [replace(region, quad_xy=points(region.quad_xy)) for region in regions]
            return TextRegionsResult(tuple(quads))
    return result


def _enlarged(mask: RunLengthMask, original: ImageSize) -> RunLengthMask:
    small = run_length_mask(mask)
    rows = np.arange(original.height) * small.shape[0] // original.height
    columns = np.arange(original.width) * small.shape[1] // original.width
    runs = uncompressed_run_lengths(small[rows][:, columns])
    return RunLengthMask((original.height, original.width), compressed_run_lengths(runs))
