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
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, Any

from PIL import Image, ImageOps

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
_JPEG_QUALITY = 95
_START_BYTES = 12  # enough to tell a format
SENT = ("JPEG", "PNG", "WEBP")
_LOSSY = ("AVIF", "HEIF")
# First bytes, and what reads them, of each format; Image.open would try all formats of Pillow.
_READERS = {
    "JPEG": (rb"\xff\xd8\xff", "PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": (rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": (rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin", "WebPImageFile"),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin", "TiffImageFile"),
    "GIF": (rb"GIF8", "PIL.GifImagePlugin", "GifImageFile"),
    "BMP": (rb"BM", "PIL.BmpImagePlugin", "BmpImageFile"),
    "AVIF": (rb".{4}ftypavi[fs]", "PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": (rb".{4}ftyp(he[iv]|mif1|msf1)", "pillow_heif", "HeifImageFile"),
    "PDF": (rb"%PDF-", "pypdfium2", "PdfDocument"),
}
_PAGE = re.compile(r"(.+)#page=([0-9]{1,6})", re.DOTALL)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
DAMAGED = (
    *(ArithmeticError, AssertionError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError),
)
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
        with suppress(ImportError, *DAMAGED), (folder / name).open("rb") as file:
            num_pages = _num_pages(file, MAX_PAGES + 1)
    if num_pages > MAX_PAGES:
        logger.warning("%s has more than %d pages: the others are left out", name, MAX_PAGES)
    numbers = range(1, min(num_pages, MAX_PAGES) + 1)
    return [name] if num_pages < 2 else [f"{name}#page={number}" for number in numbers]


def _num_pages(file: IO[bytes], maximum: int) -> int:
    """Return the number of pages, of a TIFF up to a maximum: each is read to find the next."""
    file_format = format_of(file.read(_START_BYTES))
    file.seek(0)
    if file_format == "PDF":
        with _pdfium, closing(reader(file_format)(file)) as document:
            return len(document)
    image = _bounded(reader(file_format)(file))
    for number in range(1, maximum):
        try:
            image.seek(number)
        except DAMAGED:  # also where the next one is damaged
            return number
    return maximum


def converted_name(name: str) -> str:
    """Return the name of an image with the suffix of the file that `read_image_file` returns."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SENT_SUFFIXES:
        return name
    return f"{name}.jpg" if suffix in _LOSSY_SUFFIXES else f"{name}.png"


def is_sendable(path: Path) -> bool:
    """Return True for a file that is sent as it is, whatever its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return format_of(file.read(_START_BYTES)) in SENT


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
        if not format_of(start):
            raise OSError(f"image must be {ALLOWED}, which {path} is not")
        return converted(start + file.read(MAX_CONVERTED_BYTES), page)


def converted(data: bytes, page: int | None = None) -> bytes:
    """Return one page as PNG or JPEG, a file of an unknown format as it is; raise `OSError`."""
    file_format = format_of(data)
    try:
        if file_format in ("", *SENT):
            if page not in (None, 1):
                raise ValueError(f"there is no page {page}")
            return data
        if len(data) > MAX_CONVERTED_BYTES:
            raise ValueError(f"{len(data)} bytes; the maximum is {MAX_CONVERTED_BYTES}")
        if page is None and _num_pages(io.BytesIO(data), 2) > 1:
            logger.warning("an image has several pages: the first is sent, name one as FILE#page=2")
        if file_format == "PDF":
            return encoded(_sheet(data, page))
        picture = _bounded(reader(file_format)(io.BytesIO(data)))
        if page is not None:
            picture.seek(page - 1)
        picture = ImageOps.exif_transpose(_bounded(picture))
        if picture.mode in ("F", "I"):
            raise ValueError("its tones have 32 bits, of an unknown range; convert them to 8 or 16")
        return encoded(picture, "JPEG" if file_format in _LOSSY else "PNG")
    except ImportError as error:
        raise OSError(f"{error}: install diptych-client with the extra `formats`") from error
    except DAMAGED as error:
        raise OSError(f"cannot convert the image: {error}") from error


def format_of(data: bytes) -> str:
    """Return the format of a file by its first bytes, or nothing."""
    for file_format, (pattern, _, _) in _READERS.items():
        if re.match(pattern, data, re.DOTALL):
            return file_format
    return ""


def reader(file_format: str) -> Any:
    """Return the class that reads a format: one of Pillow, or of PDFs; raise `KeyError`."""
    _, module, kind = _READERS[file_format]
    return getattr(import_module(module), kind)


def _bounded(image: Any) -> Any:
    """Return an image of few enough pixels; before `seek`, as a GIF's decodes earlier frames."""
    num_pixels = image.width * image.height
    if num_pixels > MAX_CONVERTED_PIXELS:
        raise ValueError(f"{num_pixels} pixels; the maximum is {MAX_CONVERTED_PIXELS}")
    return image


def _sheet(data: bytes, page: int | None) -> Image.Image:
    with _pdfium, closing(reader("PDF")(data)) as document:
        sheet = document[0 if page is None else page - 1]
        width, height = sheet.get_size()
        scale = min(_PDF_SCALE, math.sqrt(MAX_PDF_PIXELS / (width * height)))
        with closing(sheet.render(scale=scale)) as bitmap:
            picture: Image.Image = bitmap.to_pil().copy()
    return picture


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    """Return the pixels as a file without EXIF data; 16-bit tones become 8-bit ones."""
    if image.mode not in _PNG_MODES or file_format == "JPEG":
        image = rgb_of(image)
    file = io.BytesIO()
    image.save(file, file_format, quality=_JPEG_QUALITY)
    return file.getvalue()


def rgb_of(image: Image.Image) -> Image.Image:
    """Return an image in RGB as the service sees it: 8 bits, over white."""
    if image.mode.startswith("I;16"):  # `convert` alone would clip it
        return image.convert("I").point(lambda tone: tone / 256).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba)
    return rgb
