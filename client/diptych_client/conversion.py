"""Pixels, and files of other formats, become files that the service reads: JPEG, PNG or WebP.

    TIFF, GIF, BMP    one page or frame, as PNG
    HEIC, AVIF        as JPEG; needs the extra `formats`
    PDF               one page at 200 dots per inch, as PNG; needs the extra `formats`

`scan.pdf#page=2` names a page; without one it is the first. The content decides the format. Bytes,
pages and pixels are bounded, as strangers make such files, too.
"""

import io
import logging
import math
import re
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO

from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

SENT_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}  # the formats that the service reads
_PAGED_SUFFIXES = {".tif", ".tiff", ".pdf"}
_LOSSY_SUFFIXES = {".heic", ".heif", ".avif"}
SUFFIXES = SENT_SUFFIXES | _PAGED_SUFFIXES | _LOSSY_SUFFIXES | {".gif", ".bmp"}
ALLOWED = "a JPEG, PNG, WebP, TIFF, GIF, BMP, HEIC, AVIF or PDF file"
MAX_PAGES = 1_000  # that a folder lists of one file
MAX_CONVERTED_BYTES = 1_000_000_000
MAX_CONVERTED_PIXELS = 250_000_000
MAX_PDF_PIXELS = 50_000_000
_PDF_SCALE = 200 / 72  # pixels per point
_START_BYTES = 12  # enough to tell a format
_JPEG_QUALITY = 95
_SENT = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP", re.DOTALL)
_PDF = b"%PDF-"
# The first bytes, and the class that reads the file; Image.open would try all formats of Pillow.
_READERS = (
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "PIL.TiffImagePlugin", "TiffImageFile"),
    (re.compile(rb"GIF8"), "PIL.GifImagePlugin", "GifImageFile"),
    (re.compile(rb"BM"), "PIL.BmpImagePlugin", "BmpImageFile"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "PIL.AvifImagePlugin", "AvifImageFile"),
    (re.compile(rb".{4}ftyp(he[iv]|mif1|msf1)", re.DOTALL), "pillow_heif", "HeifImageFile"),
)
_LOSSY_FORMATS = ("AVIF", "HEIF")
_PAGE = re.compile(r"(.+)#page=([0-9]{1,6})", re.DOTALL)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_DAMAGED = (
    *(ArithmeticError, AssertionError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError),
)
_SEVERAL = "an image has several pages, of which the first is sent: name one as FILE#page=2"
_pdfium = Lock()  # its functions must not run concurrently

logger = logging.getLogger("diptych_client")


def split_page(path: Path) -> tuple[Path, int | None]:
    """Return the file and the page that a path names, unless a file has this whole name."""
    match = _PAGE.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match[1]), int(match[2])


def pages_of(folder: Path, name: str) -> list[str]:
    """Return the name of each page of a TIFF or PDF with several; an unreadable file has one."""
    num_pages = 1
    if PurePosixPath(name).suffix.lower() in _PAGED_SUFFIXES:
        with suppress(ImportError, *_DAMAGED), (folder / name).open("rb") as file:
            num_pages = _num_pages(file)
    if num_pages > MAX_PAGES:
        logger.warning("%s has more than %d pages: the others are left out", name, MAX_PAGES)
    numbers = range(1, min(num_pages, MAX_PAGES) + 1)
    return [name] if num_pages < 2 else [f"{name}#page={number}" for number in numbers]


def _num_pages(file: IO[bytes]) -> int:
    start = file.read(_START_BYTES)
    file.seek(0)
    if not start.startswith(_PDF):
        return _num_frames(_reader(start)(file), MAX_PAGES + 1)
    import pypdfium2

    with _pdfium, closing(pypdfium2.PdfDocument(file)) as document:
        return len(document)


def _num_frames(image: ImageFile, maximum: int) -> int:
    """Return the number of frames up to a maximum: each one is read to find the next."""
    for number in range(1, maximum):
        try:
            image.seek(number)
        except EOFError:
            return number
    return maximum


def converted_name(name: str) -> str:
    """Return the name of an image with the suffix of the file that `read_image_file` returns."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SENT_SUFFIXES:
        return name
    return f"{name}.jpg" if suffix in _LOSSY_SUFFIXES else f"{name}.png"


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image file, or of a page, converted if need be.

    Raise `OSError` for any other, which must not be sent to a service.

    A name in a foreign dataset may be a link to a private file; a device or a pipe might never end.
    """
    path, page = split_page(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
        if not _SENT.match(start) and not is_convertible(start):
            raise OSError(f"image must be {ALLOWED}, which {path} is not")
        return converted(start + file.read(MAX_CONVERTED_BYTES), page)


def converted(data: bytes, page: int | None = None) -> bytes:
    """Return one page as PNG or JPEG; a file that needs no conversion, or of an unknown format, as
    it is. Raise `OSError`.
    """
    start = data[:_START_BYTES]
    try:
        if not is_convertible(start):
            if page not in (None, 1):
                raise ValueError(f"there is no page {page}")
            return data
        if len(data) > MAX_CONVERTED_BYTES:
            raise ValueError(f"{len(data)} bytes; the maximum is {MAX_CONVERTED_BYTES}")
        if start.startswith(_PDF):
            return encoded(_sheet(data, page))
        image = _reader(start)(io.BytesIO(data))
        file_format = "JPEG" if image.format in _LOSSY_FORMATS else "PNG"
        return encoded(_frame(image, page), file_format)
    except ImportError as error:
        raise OSError(f"{error}: install diptych-client with the extra `formats`") from error
    except _DAMAGED as error:
        raise OSError(f"cannot convert the image: {error}") from error


def is_convertible(start: bytes) -> bool:
    """Return True for the first bytes of a file of another format than those that are sent."""
    return start.startswith(_PDF) or any(pattern.match(start) for pattern, _, _ in _READERS)


def _reader(start: bytes) -> Callable[[IO[bytes]], ImageFile]:
    for pattern, module, name in _READERS:
        if pattern.match(start):
            reader: Callable[[IO[bytes]], ImageFile] = getattr(import_module(module), name)
            return reader
    raise ValueError("not an image")


def _frame(image: ImageFile, page: int | None) -> Image.Image:
    """Return a frame, upright: by default the first, of a HEIC file the primary one."""
    if page is not None:
        image.seek(page - 1)
    elif _num_frames(image, 2) > 1:
        logger.warning(_SEVERAL)
        image.seek(0)
    num_pixels = image.width * image.height
    if num_pixels > MAX_CONVERTED_PIXELS:
        raise ValueError(f"{num_pixels} pixels; the maximum is {MAX_CONVERTED_PIXELS}")
    image.load()  # turns a TIFF upright
    return ImageOps.exif_transpose(image)


def _sheet(data: bytes, page: int | None) -> Image.Image:
    import pypdfium2

    with _pdfium, closing(pypdfium2.PdfDocument(data)) as document:
        if page is None and len(document) > 1:
            logger.warning(_SEVERAL)
        sheet = document[0 if page is None else page - 1]
        width, height = sheet.get_size()
        scale = min(_PDF_SCALE, math.sqrt(MAX_PDF_PIXELS / (width * height)))
        with closing(sheet.render(scale=scale)) as bitmap:
            picture: Image.Image = bitmap.to_pil().copy()
    return picture


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    """Return the pixels as a file without EXIF data; 16-bit tones become 8-bit ones."""
    if image.mode.startswith("I"):  # `convert` alone would clip it
        image = image.convert("I").point(lambda tone: tone / 256).convert("L")
    if image.mode not in _PNG_MODES or file_format == "JPEG":
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, file_format, quality=_JPEG_QUALITY)
    return file.getvalue()
