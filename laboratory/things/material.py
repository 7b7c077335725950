"""The fonts and photographs of the scenes, in a folder outside the repository.

fonts/          Noto Color Emoji and the fonts of `fonts.csv`, of which some are held out from
                training; from Debian's packages
photographs/    pictures of scikit-image's wheel, none of those in `models/photographs`
"""

import csv
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

_EMOJI_PACKAGE = "fonts-noto-color-emoji"
_EMOJI_FILE = "NotoColorEmoji.ttf"
_EMOJI_PX = 109  # its bitmaps have this size only
_PHOTOGRAPHS = (
    "brick.png",
    "cell.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
)
_WHEEL = "scikit-image==0.26.0"


@dataclass(frozen=True, slots=True)
class FontFile:
    """The regular face of a font family."""

    package: str
    file: str
    is_held_out: bool


def read_fonts() -> tuple[FontFile, ...]:
    with Path(__file__).with_name("fonts.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            FontFile(row["package"], row["file"], bool(row["is_held_out"]))
            for row in csv.DictReader(file)
        )


FONTS = read_fonts()
_FONTS = (_EMOJI_FILE, *(font.file for font in FONTS))


@lru_cache(maxsize=1024)
def load_font(file: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size_px)


@cache
def font_characters(file: Path) -> frozenset[str]:
    with TTFont(file, lazy=True, fontNumber=0) as font:
        return frozenset(map(chr, font.getBestCmap()))


@cache
def load_emoji(file: Path, emoji: str) -> Image.Image:
    font = ImageFont.truetype(file, _EMOJI_PX)
    left, top, right, bottom = map(int, font.getbbox(emoji))
    image = Image.new("RGBA", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), emoji, font=font, embedded_color=True)
    return image.crop(image.getchannel("A").getbbox())


class Material:
    """An opened folder; raises FileNotFoundError if a font or a picture is missing."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: path for path in folder.glob("**/*") if path.is_file()}
        if missing := [name for name in (*_FONTS, *_PHOTOGRAPHS) if name not in self._files]:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}; run python -m laboratory.things {folder}"
            )

    def font(self, file: str, size_px: int) -> ImageFont.FreeTypeFont:
        """Return a font at a size."""
        return load_font(self._files[file], size_px)

    def characters(self, file: str) -> frozenset[str]:
        """Return the characters that a font has."""
        return font_characters(self._files[file])

    def emoji(self, emoji: str) -> Image.Image:
        """Return a glyph as RGBA, cropped to its ink."""
        return load_emoji(self.emoji_file, emoji)

    @property
    def emoji_file(self) -> Path:
        """The font of the glyphs."""
        return self._files[_EMOJI_FILE]

    @cached_property
    def photographs(self) -> Sequence[Image.Image]:
        """The pictures, in the order of their names."""
        return [Image.open(self._files[name]).convert("RGB") for name in _PHOTOGRAPHS]


def fetch_material(folder: Path) -> None:
    """Download the fonts and photographs by apt and pip; their indexes must be up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as downloads:
        _fetch_fonts(Path(downloads), folder / "fonts")
        _fetch_photographs(Path(downloads), folder / "photographs")


def _fetch_fonts(downloads: Path, fonts: Path) -> None:
    packages = sorted({_EMOJI_PACKAGE, *(font.package for font in FONTS)})
    subprocess.run(["apt-get", "download", "-qq", *packages], cwd=downloads, check=True)
    for file in downloads.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", file, downloads / "root"], check=True)
    fonts.mkdir(exist_ok=True)
    for file in downloads.glob("root/**/*"):
        if file.name in _FONTS:
            file.replace(fonts / file.name)


def _fetch_photographs(downloads: Path, photographs: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", _WHEEL]
    subprocess.run(pip, cwd=downloads, check=True)
    (wheel,) = downloads.glob("scikit_image-*.whl")
    photographs.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in _PHOTOGRAPHS:
            (photographs / name).write_bytes(archive.read(f"skimage/data/{name}"))
