"""The checkpoints of a run that has not ended, in a folder below the output."""

from pathlib import Path

from export.errors import TuningError
from wire.artifacts.adapter_folder import CONFIG_FILE

RUN_FOLDER = "run"  # removed from the output folder when the run ends
_STATE_FILE = "trainer_state.json"  # written last, so that a checkpoint with it is complete


def checkpoint_to_resume(output: Path, resume: bool, overwrite: bool = False) -> str | None:
    """Return the last complete checkpoint of an interrupted run.

    Raise `TuningError` if the output does not fit, or has files that are not of such a run.
    """
    run = output / RUN_FOLDER
    hint = "give another --output, or --overwrite to replace its files"
    if not overwrite and (output / CONFIG_FILE).exists():
        raise TuningError(f"{output} already has an adapter; {hint}")
    if run.exists() and not resume:
        raise TuningError(
            f"{output} has an interrupted run; --resume continues it, removing {run} discards it"
        )
    if not run.exists():
        if resume:
            raise TuningError(f"{output} has no interrupted run to resume")
        if not overwrite and output.exists() and any(output.iterdir()):
            raise TuningError(f"{output} has files that are not of an interrupted run; {hint}")
        return None
    complete = [path for path in run.glob("checkpoint-*") if (path / _STATE_FILE).is_file()]
    return (
        str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None
    )
