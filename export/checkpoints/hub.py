"""Checkpoints and single files of the Hugging Face hub, through its cache on the local disk.

What is in the cache needs no network. huggingface_hub is imported when something is fetched: it
takes a second.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.errors import SourceError, one_line


def fetch_snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of the files that match, at a commit, branch or tag.

    Its name is the commit. Raise `SourceError`; files that were complete by then stay in the cache.
    """
    from huggingface_hub import snapshot_download

    with _source_errors(f"{repository} at {revision or 'its newest commit'}"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def fetch_file(repository: str, file_name: str, repository_type: str) -> Path:
    """Return one file of the newest commit; raise `SourceError`."""
    from huggingface_hub import hf_hub_download

    with _source_errors(f"{file_name} of {repository}"):
        return Path(hf_hub_download(repository, file_name, repo_type=repository_type))


@contextmanager
def _source_errors(subject: str) -> Iterator[None]:
    """Turn any failure of huggingface_hub into a `SourceError` of one line.

    Its exceptions have no base class: hf_xet, for one, raises RuntimeError for a broken download.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # it raises what it logs and warns of
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        raise SourceError(f"cannot fetch {subject}: {one_line(error)}") from error
