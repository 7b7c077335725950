"""Checkpoints and single files of the Hugging Face hub, through its cache on the local disk.

What is in the cache needs no network. huggingface_hub is imported when something is fetched: it
takes a second.
"""

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.errors import SourceError, is_disk_full

_MAX_REASON_CHARS = 200
_COPY_CHECKPOINT = ", or copy a checkpoint to it and give its folder as --source"


def fetch_snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of the files that match, at a commit, branch or tag.

    Its name is the commit.

    Raise `SourceError`; files that were complete by then stay in the cache.
    """
    from huggingface_hub import snapshot_download

    subject = f"{repository} at {revision or 'its newest commit'}"
    with _one_line_errors(repository, subject, _COPY_CHECKPOINT):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def fetch_file(
    repository: str, file_name: str, repository_type: str, max_bytes: float = math.inf
) -> Path:
    """Return one file of the newest commit, of at most `max_bytes`; raise `SourceError`."""
    from huggingface_hub import hf_hub_download

    subject = f"{file_name} of {repository}"
    with _one_line_errors(repository, subject):
        file = hf_hub_download(repository, file_name, repo_type=repository_type, dry_run=True)
    if (file.file_size or 0) > max_bytes:
        raise SourceError(f"{subject} has {file.file_size} bytes; at most {max_bytes} are allowed")
    with _one_line_errors(repository, subject):
        return Path(hf_hub_download(repository, file_name, repo_type=repository_type))


def list_files(repository: str, revision: str) -> list[str]:
    """Return the names of all files of a commit; none if the hub cannot be reached."""
    from huggingface_hub import list_repo_files

    try:
        with _one_line_errors(repository, f"the list of files of {repository}"):
            return sorted(list_repo_files(repository, revision=revision))
    except SourceError:
        return []


@contextmanager
def _one_line_errors(repository: str, subject: str, remedy: str = "") -> Iterator[None]:
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
        raise SourceError(
            f"cannot fetch {subject}: {_reason(error, repository, remedy)}"
        ) from error


def _reason(error: Exception, repository: str, remedy: str) -> str:
    from huggingface_hub import constants, errors, get_token

    if is_disk_full(error):
        return (
            f"no space left on the disk of {constants.HF_HUB_CACHE}; free some, or set HF_HOME to a"
            " larger disk"
        )
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        if get_token() is None:
            return (
                f"it is gated and there is no token; accept its terms at {page}, and set HF_TOKEN"
                " to a token with read access of the same account"
            )
        return (
            f"it is gated and the account of the token has not accepted its terms, or the token may"
            f" not read gated repositories; accept them at {page}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private and HF_TOKEN gives no access"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{constants.ENDPOINT} does not answer (or HF_HUB_OFFLINE is set), and not all files"
            f" are in the cache {constants.HF_HUB_CACHE}; connect this host{remedy}"
        )
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_REASON_CHARS]
    return f"the download failed ({reason}); the same command resumes it"
