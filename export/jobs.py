"""One export, planned: which checkpoint, which precision, and the key that tells whether it has to be made at all.

Imports neither torch nor transformers, so that finding nothing to do takes no time.
"""

from dataclasses import dataclass
from pathlib import Path

from export.build_key import build_key, library_versions
from export.errors import SourceError
from export.sources import Source, resolve_file, resolve_source
from runners.artifacts import Precision
from tasks.catalog import CatalogEntry
from tasks.paligemma.masks import MaskDecoder, MaskDecoderError


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may set otherwise than the catalog; None leaves the catalog's value."""

    source: str | None = None
    revision: str | None = None
    precision: Precision | None = None
    mask_decoder: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Everything that decides what an export makes."""

    entry: CatalogEntry
    source: Source
    precision: Precision
    mask_decoder: Path | None
    versions: dict[str, str]
    build_key: str


def plan_job(entry: CatalogEntry, options: ExportOptions, root: Path) -> ExportJob:
    """Find the files of an export, fetching them where they are on the hub; raise `SourceError`.

    The catalog's folders are relative to `root`, the user's to the working directory.
    """
    if options.source is None:
        revision = options.revision or entry.revision
        source = resolve_source(entry.source, revision, entry.family, root)
    else:
        source = resolve_source(options.source, options.revision, entry.family, Path.cwd())
    mask_decoder = _find_mask_decoder(entry, options, source)
    precision = options.precision or entry.precision
    versions = library_versions()
    files = [*source.files(), *([mask_decoder] if mask_decoder else [])]
    return ExportJob(entry, source, precision, mask_decoder, versions, build_key(files, precision, versions))


def _find_mask_decoder(entry: CatalogEntry, options: ExportOptions, source: Source) -> Path | None:
    if entry.mask_decoder is None:
        if options.mask_decoder is not None:
            raise SourceError(f"{entry.id} has no use for a mask decoder; given: {options.mask_decoder}")
        return None
    path = options.mask_decoder or resolve_file(entry.mask_decoder, source)
    try:
        MaskDecoder.load(path)
    except MaskDecoderError as error:
        raise SourceError(str(error)) from error
    return path
