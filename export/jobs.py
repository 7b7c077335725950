"""One export, planned: which checkpoint, at which precisions, and the key that tells whether it has to be made at all.

Imports neither torch nor transformers, so that finding nothing to do takes no time.
"""

from dataclasses import dataclass
from pathlib import Path

from export.build_key import build_key, library_versions
from export.errors import SourceError
from export.precision_record import PrecisionRecord, checkpoint_key, read_record, record_file
from export.sources import Source, resolve_file, resolve_source
from tasks.catalog import CatalogEntry
from tasks.paligemma.masks import MaskDecoder, MaskDecoderError


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may set otherwise than the catalog; None leaves the catalog's value."""

    source: str | None = None
    revision: str | None = None
    mask_decoder: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Everything that decides what an export makes."""

    entry: CatalogEntry
    source: Source
    mask_decoder: Path | None
    record: PrecisionRecord | None  # of these weights
    versions: dict[str, str]
    build_key: str


def plan_job(entry: CatalogEntry, options: ExportOptions, root: Path) -> ExportJob:
    """Find the files of an export, fetching them where they are on the hub; raise `SourceError` or `PrecisionError`.

    The catalog's folders are relative to `root`, the user's to the working directory.
    """
    if options.source is None:
        revision = options.revision or entry.revision
        source = resolve_source(entry.source, revision, entry.family, root)
    else:
        source = resolve_source(options.source, options.revision, entry.family, Path.cwd())
    mask_decoder = _find_mask_decoder(entry, options, source)
    record = read_record(record_file(root, entry.id), checkpoint_key(source))
    if record is not None:
        record.check(entry)
    versions = library_versions()
    files = [*source.files(), *([mask_decoder] if mask_decoder else [])]
    key = build_key(files, entry.precision, record, versions)
    return ExportJob(entry, source, mask_decoder, record, versions, key)


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
