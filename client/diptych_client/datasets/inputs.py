"""Images as people have them, opened as files of a folder.

    a folder                  a dataset, or images
    'photos/**/*.jpg', files  images
    data.zip, data.tar.gz     a folder, unpacked: no bomb, no path outside, only data files
                              that are not hidden
    any other file            labels, for the readers of datasets

A name that a stranger wrote cannot lead out of its folder. Input that is left out or changed is a
line of `Problems`.
"""

import json
import os
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, TypeGuard
from unicodedata import normalize

from diptych_client.conversion import SUFFIXES, is_sendable, pages_of, read_image_file, split_page
from diptych_client.datasets.long_runs import RunError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LABEL_SUFFIXES = {".csv", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".xml", ".parquet", ".arrow"}
_UNPACKED = SUFFIXES | LABEL_SUFFIXES | {".names", ".data", ".labels"}

MAX_ARCHIVE_FILES = 1_000_000
MAX_ARCHIVE_RATIO = 100  # unpacked bytes, or the following number if that is more
MIN_ARCHIVE_LIMIT_BYTES = 100_000_000

# A value of another form than its format's: a missing key, a list where a number is due, 1e999 …
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)
EMPTY_IMAGE = "empty image left out"
IMAGE_LEFT_OUT = "image left out"
NOT_UTF8 = "its name is not text in UTF-8: rename it"
_MAX_CHARS = 500
_MAX_PATH_CHARS = 4096
_MAX_KINDS = 30
_MAX_SUFFIX = 8
_HIDDEN = (".", "__MACOSX")
_FOREIGN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|/")


@dataclass(slots=True)
class Problems:
    """The problems of a run, with place, finding and consequence; one ends a strict run."""

    is_strict: bool = False
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # keyed by consequence

    def add(self, place: object, finding: object, consequence: str) -> None:
        """Add a line; raise `RunError` with it if the run is strict."""
        line = escaped(" ".join(f"{place}: {finding}".split())[:_MAX_CHARS])
        if self.is_strict:
            raise RunError(line)
        self.counts[consequence] += 1
        self.lines.append(f"{line}; {consequence}")

    def count(self, consequence: str, number: int = 1) -> None:
        """Count what is left out as intended, which ends no strict run; many kinds are one."""
        is_kind = consequence in self.counts or len(self.counts) < _MAX_KINDS
        self.counts[consequence if is_kind else "other left out"] += number

    @contextmanager
    def leaving_out(self, kind: str, place: object) -> Iterator[None]:
        """Add malformed input as a problem: the object of this kind is left out."""
        try:
            yield
        except MALFORMED as error:
            finding = f"no key {error}" if isinstance(error, KeyError) else error
            self.add(place, finding, f"{kind} left out")

    def summary(self) -> str:
        return ", ".join(f"{count} x {name}" for name, count in sorted(self.counts.items()))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by its path relative to the folder, with `/`; size and time detect a change."""

    name: str
    size_bytes: int
    mtime_ns: int


class ImageStore(Protocol):
    """The place of the image files; `read` raises `OSError` for one that cannot be read."""

    def read(self, image: ImageFile) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ImageInStore:
    """A file object that reads an image when its turn comes."""

    store: ImageStore
    image: ImageFile

    def read(self) -> bytes:
        return self.store.read(self.image)


@dataclass(frozen=True, slots=True)
class Folder:
    """Images as files of a folder."""

    path: Path
    origins: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def read(self, image: ImageFile) -> bytes:
        return read_image_file(self.path / image.name)

    def image(self, name: str) -> ImageFile:
        """Return an image by its path in the folder; a missing one fails when it is read.

        Raise `RunError` if it leaves the folder, or if two foreign paths are one file.
        """
        origin = name
        name = self.find(origin) or origin
        if name != origin and self.origins.setdefault(name, origin) != origin:
            others = f"{self.origins[name]!r:.200} and {origin!r:.200}"
            raise RunError(f"{self.path}: {others} would both be {name}")
        path, _ = split_page(path_within(self.path, name))
        if not path.exists():
            return ImageFile(name, 0, 0)
        stat = path.stat()
        return ImageFile(name, stat.st_size, stat.st_mtime_ns)

    def find(self, name: str) -> str | None:
        """Return the path of a file in the folder: this, or the longest end of a foreign one."""
        if not _is_path(name):
            return None
        path = Path(os.path.abspath(self.path / name))
        if path.is_relative_to(os.path.abspath(self.path)) and (found := spelling(self.path, name)):
            return found
        return next(filter(None, (spelling(self.path, end) for end in foreign_ends(name))), None)


def foreign_ends(name: str) -> Iterator[str]:
    """Yield the ends of a URL, an absolute path or one with backslashes, the longest first."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    num_ends = len(parts) if _FOREIGN.match(text) else int(text != name)
    for start in range(num_ends):
        yield "/".join(parts[start:])


def spelling(folder: Path, name: str) -> str | None:
    """Return the path of a file as the disk has it, composed (NFC) or decomposed (NFD)."""
    parts: list[str] = []
    if not name.isascii() and not (folder / name).is_file():
        for part in name.split("/"):
            forms = (part, normalize("NFC", part), normalize("NFD", part))
            existing = (form for form in forms if folder.joinpath(*parts, form).exists())
            parts.append(next(existing, part))
    path = "/".join(parts) or name
    return path if (folder / path).is_file() else None


def files_below(folder: Path, *suffixes: str, problems: Problems | None = None) -> list[str]:
    """Return the paths of files below a folder, sorted; hidden ones are left out.

    macOS writes a hidden `._a.jpg`, or one below `__MACOSX`, for every `a.jpg`. A link to a folder
    is followed once, and not into this folder, whose files have a path already. `problems` count
    the other entries.
    """
    left_out = problems or Problems()
    root = folder.resolve()
    followed = {root}

    def is_followed(path: Path) -> bool:
        target = path.resolve()
        if target in followed or target.is_relative_to(root):
            return False
        followed.add(target)
        if root.is_relative_to(target):
            left_out.count("circular link left out")
        return target not in root.parents

    def leave_out(_: OSError) -> None:
        left_out.count("unreadable folder left out")

    names = []
    for place, folders, files in os.walk(folder, onerror=leave_out, followlinks=True):
        paths = map(Path(place).joinpath, sorted(filter(is_shown, folders)))
        folders[:] = [path.name for path in paths if not path.is_symlink() or is_followed(path)]
        for path in map(Path(place).joinpath, filter(is_shown, files)):
            if suffixes and path.suffix.lower() not in suffixes:
                continue
            if path.is_file():
                names.append(path.relative_to(folder).as_posix())
            else:
                left_out.count(f"{'broken link' if path.is_symlink() else 'special file'} left out")
    return sorted(names)


def is_shown(name: str) -> bool:
    return not name.startswith(_HIDDEN)


def escaped(name: str) -> str:
    """Return a name as text in UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def is_utf8(name: str) -> bool:
    """Return False for the name of a file that has bytes of another encoding."""
    return escaped(name) == name


def find_images(folder: Path, problems: Problems | None = None) -> list[ImageFile]:
    """Return the images below a folder, each page."""
    pages: list[str] = []
    for name in image_names(folder, problems or Problems()):
        pages += pages_of(folder, name)
    return list(map(Folder(folder).image, pages))


def image_names(folder: Path, problems: Problems) -> list[str]:
    """Return the names of the image files below a folder; others than labels are counted."""
    names = []
    for name in files_below(folder, problems=problems):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            if not (folder / name).stat().st_size:
                problems.count(EMPTY_IMAGE)
            elif not is_utf8(name):
                problems.add(name, NOT_UTF8, IMAGE_LEFT_OUT)
            else:
                names.append(name)
        elif suffix not in _UNPACKED:
            problems.count(f"{suffix[:_MAX_SUFFIX] or 'unsuffixed'} file left out")
    return names


def _is_path(name: object) -> TypeGuard[str]:
    """Return False, too, for an image in base64, which files name as its path."""
    return isinstance(name, str) and 0 < len(name) <= _MAX_PATH_CHARS and "\0" not in name


def path_within(folder: Path, name: object) -> Path:
    """Return the path of a file that a dataset names; raise `RunError` if it leaves the folder.

    The text decides: a folder of images is often a link to another disk, which its owner made.
    """
    if not _is_path(name):
        rule = f"a file name must be text of at most {_MAX_PATH_CHARS} characters without NUL"
        raise RunError(f"{folder}: {rule}, got {name!r:.200}")
    path = Path(os.path.abspath(folder / name))
    if not path.is_relative_to(os.path.abspath(folder)):
        raise RunError(f"{folder}: the file name {name!r:.200} leads outside this folder")
    return path


@dataclass(frozen=True, slots=True)
class Opening:
    """The folder that inputs are unpacked to, and the problems in them."""

    work: Path
    problems: Problems


@dataclass(frozen=True, slots=True)
class Opened:
    """A folder or a label file; `files` are images that were named one by one."""

    path: Path
    files: tuple[ImageFile, ...] | None = None

    def images(self, problems: Problems | None = None) -> tuple[Folder, list[ImageFile]]:
        """Return the images and their folder; `problems` counts the files that are left out."""
        images = list(self.files or ())
        if self.files is None and self.path.is_dir():
            images = find_images(self.path, problems)
        if not images:
            raise RunError(f"{self.path} contains no image")
        return Folder(self.path), images


def open_images(names: Sequence[str], opening: Opening) -> Opened:
    """Return the files of one input, or of several image files; raise `RunError`."""
    path, _ = split_page(Path(names[0]))
    if len(names) == 1 and not path.exists():
        matches = sorted(glob(names[0], recursive=True))
        if not any(map(os.path.exists, matches)):  # a link may be broken
            raise RunError(f"{names[0]} does not exist, and no file matches it as a pattern")
        return open_images(matches, opening)
    suffix = path.suffix.lower()
    if len(names) > 1 or (suffix in SUFFIXES and not path.is_dir()) or is_sendable(path):
        return _image_files(names)
    if path.is_dir():
        return Opened(path)
    if path.name.lower().endswith(_ARCHIVES):
        return Opened(_unpacked(opening, path))
    return Opened(path)


def _image_files(names: Sequence[str]) -> Opened:
    absolute: list[Path] = []
    for name in names:
        path, _ = split_page(Path(name))
        is_image = path.suffix.lower() in SUFFIXES or is_sendable(path)
        if not path.is_file() or not is_image:
            raise RunError(f"{path}: several inputs must be images")
        absolute += map(path.absolute().with_name, pages_of(path.parent, Path(name).name))
    folder = Folder(Path(os.path.commonpath([path.parent for path in absolute])))
    images = dict.fromkeys(path.relative_to(folder.path).as_posix() for path in absolute)
    return Opened(folder.path, tuple(map(folder.image, images)))


def _unpacked(opening: Opening, archive: Path) -> Path:
    """Return the folder of the opening with the files of an archive, once for each state of it.

    What it left out is remembered beside the folder. Raise `RunError` for a folder that this
    command did not make.
    """
    work = opening.work
    stat = archive.stat()
    state = f"{archive.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    mark = work.with_name(f"{work.name}.source")
    if mark.is_file():
        known, _, counts = mark.read_text(encoding="utf-8").rpartition("\n")
        if work.is_dir() and known == state:
            opening.problems.counts.update(json.loads(counts))
            return work
        shutil.rmtree(work, ignore_errors=True)
    elif work.exists():
        raise RunError(f"{work} is not of this command: move it, or choose another output folder")
    work.mkdir(parents=True)
    mark.write_text("", encoding="utf-8")  # incomplete
    left_out = Problems()
    _unpack(archive, work, left_out)
    mark.write_text(f"{state}\n{json.dumps(left_out.counts)}", encoding="utf-8")
    opening.problems.counts.update(left_out.counts)
    return work


def _unpack(archive: Path, folder: Path, left_out: Problems) -> None:
    limit = max(MIN_ARCHIVE_LIMIT_BYTES, MAX_ARCHIVE_RATIO * archive.stat().st_size)
    num_bytes = 0
    try:
        for number, (name, changed_s, size_bytes, content) in enumerate(_members(archive), 1):
            num_bytes += size_bytes
            if num_bytes > limit or number > MAX_ARCHIVE_FILES:
                allowed = f"{limit:,} bytes or {MAX_ARCHIVE_FILES:,} files"
                raise RunError(f"{archive} holds more than {allowed}: unpack it yourself")
            path = path_within(folder, name.replace("\\", "/"))
            if not all(map(is_shown, os.path.relpath(path, folder).split(os.sep))):
                continue
            if path.suffix.lower() not in _UNPACKED:
                left_out.count(f"{path.suffix.lower()[:_MAX_SUFFIX] or 'unsuffixed'} file left out")
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
            os.utime(path, (changed_s, changed_s))  # equal in the next run, which resumes this one
    except _DAMAGED as error:
        raise RunError(f"{archive} is not a readable archive: {error}") from error


def _members(archive: Path) -> Iterator[tuple[str, float, int, IO[bytes]]]:
    """Yield name, time of change, maximum size and content of each file: no links or devices."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir():
                    changed_s = time.mktime((*entry.date_time, 0, 0, -1))
                    yield entry.filename, changed_s, entry.file_size, zipped.open(entry)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            content = tarred.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, member.mtime, member.size, content
