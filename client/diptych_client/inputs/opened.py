"""An input of a command to files of a folder: images alone, or a dataset.

a folder                  a dataset, or images
'photos/**/*.jpg', files  images
data.zip, data.tar.gz     a folder, unpacked
clip.mp4                  images, one every so many seconds
urls.txt, https://…       images: a file with a URL in each line, or one URL
any other file            labels, for the readers of datasets
"""

import json
import os.path
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from diptych_client.inputs.archives import ARCHIVES, unpack
from diptych_client.inputs.downloads import MAX_URLS, download
from diptych_client.inputs.files import SUFFIXES, Folder, ImageFile, find_images
from diptych_client.inputs.problems import Problems
from diptych_client.inputs.videos import VIDEOS, extract_frames
from diptych_client.long_runs import RunError

_URL_SCHEMES = ("http://", "https://")
_MAX_LIST_BYTES = 100_000_000  # a longer text is not a list of URLs
DEFAULT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Opening:
    """Where files are unpacked to, and how."""

    work: Path
    problems: Problems
    every_s: float = DEFAULT_EVERY_S


@dataclass(frozen=True, slots=True)
class Opened:
    """A folder or a label file; `chosen` are the images that were named one by one."""

    path: Path
    chosen: tuple[ImageFile, ...] | None = None

    def images(self) -> tuple[Folder, list[ImageFile]]:
        """Return the images; raise `RunError` if there is none."""
        found = list(self.chosen or ())
        if self.chosen is None:
            found = find_images(self.path) if self.path.is_dir() else []
        if not found:
            expected = "a JPEG, PNG or WebP file, a folder of them, an archive, a video or URLs"
            raise RunError(f"{self.path} contains no JPEG, PNG or WebP file; expected {expected}")
        return Folder(self.path), found


def open_images(given: Sequence[str], opening: Opening) -> Opened:
    """Return the files of one input, or of several image files; raise `RunError`."""
    if len(given) != 1:
        return _chosen([Path(each) for each in given])
    (name,) = given
    path = Path(name)
    if name.startswith(_URL_SCHEMES):
        return Opened(_downloaded([name], name, opening))
    if not path.exists() and has_magic(name):
        found = sorted(glob(name, recursive=True))
        if not found:
            raise RunError(f"no file matches the pattern {name}")
        return open_images(found, opening)
    if not path.exists():
        raise RunError(f"{path} does not exist")
    if path.is_dir():
        return Opened(path)
    if name.lower().endswith(ARCHIVES):
        return Opened(_made(opening.work, path, "", lambda folder: unpack(path, folder)))
    suffix = path.suffix.lower()
    if suffix in VIDEOS:

        def extract(folder: Path) -> None:
            extract_frames(path, folder, opening.every_s)

        return Opened(_made(opening.work, path, f"every {opening.every_s} s", extract))
    if suffix in SUFFIXES:
        return _chosen([path])
    if suffix == ".txt" and path.stat().st_size <= _MAX_LIST_BYTES:
        lines = path.read_text(encoding="utf-8").splitlines()
        urls = list(filter(None, map(str.strip, lines)))
        if len(urls) > MAX_URLS:
            raise RunError(f"{path} has {len(urls):,} URLs; at most {MAX_URLS:,} are allowed")
        if urls and urls[0].startswith(_URL_SCHEMES):
            return Opened(_downloaded(urls, str(path), opening))
    return Opened(path)


def _chosen(paths: Sequence[Path]) -> Opened:
    for path in paths:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            rule = "several inputs must be JPEG, PNG or WebP files"
            raise RunError(f"{path}: {rule}; give a folder, an archive, a video or a list alone")
    absolute = [path.absolute() for path in paths]
    folder = Folder(Path(os.path.commonpath([path.parent for path in absolute])))
    names = [path.relative_to(folder.path).as_posix() for path in absolute]
    return Opened(folder.path, tuple(folder.image(name) for name in dict.fromkeys(names)))


def _downloaded(urls: Sequence[str], source: str, opening: Opening) -> Path:
    path = Path(source) if Path(source).is_file() else None
    return _made(
        opening.work, path, source, lambda folder: download(urls, folder, opening.problems)
    )


def _made(work: Path, source: Path | None, how: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `work` with what `make` writes, once for each state of the source."""
    stat = None if source is None else source.stat()
    state = json.dumps([how, source and str(source.absolute()), stat and [*stat[6:7], stat[8]]])
    mark = work.with_name(f"{work.name}.source")
    if mark.is_file():
        if work.is_dir() and mark.read_text(encoding="utf-8") == state:
            return work
        shutil.rmtree(work, ignore_errors=True)
    elif work.exists():
        raise RunError(f"{work} is not of this command: move it, or choose another output folder")
    work.mkdir(parents=True)
    mark.write_text("", encoding="utf-8")  # incomplete
    make(work)
    mark.write_text(state, encoding="utf-8")
    return work
