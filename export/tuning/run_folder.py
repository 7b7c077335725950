"""The checkpoints of a run that has not ended, in a folder below the output."""

from pathlib import Path

from export.checkpoints.errors import TuningError
from wire.artifacts.adapter_folder import CONFIG_FILE

RUN_FOLDER = "run"  # removed from the output folder when the run ends
_STATE_FILE = "trainer_state.json"  # written last, so that a checkpoint with it is complete


def checkpoint_to_resume(output: Path, resume: bool) -> str | None:
    """Return the last complete checkpoint of an interrupted run.

    Raise `TuningError` if the output does not fit.
    """
    run = output / RUN_FOLDER
    if (output / CONFIG_FILE).exists():
        raise TuningError(f"{output} already has an adapter; give another --output or remove it")
    if run.exists() and not resume:
        raise TuningError(
            f"{output} has an interrupted run; --resume continues it, removing {run} discards it"
        )
    if not run.exists():
        if resume:
            raise TuningError(f"{output} has no interrupted run to resume")
        return None
    complete = [path for path in run.glob("checkpoint-*") if (path / _STATE_FILE).is_file()]
    return (
        str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None
    )
