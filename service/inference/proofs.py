"""Proofs about the objects of a served model, and the one that a request asks for.

A proof holds for the requests with the fields with which it was made: the task, its parameters,
and what decides the answer, but not the form of masks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from service.errors import InvalidRequest, UnsupportedTask
from service.inference.request_fields import (
    GenerationFields,
    PredictFields,
    TaskRequest,
    parse_fields,
)
from service.settings import SettingsError
from tasks.errors import shown
from tasks.scores import Calibration, CalibrationError, Proof, calibration_key, read_proofs
from wire.artifacts.manifest import Manifest

_UNDECIDING = {"mask_format", "min_score", "min_precision"}
_DECIDING = tuple(name for name in GenerationFields.model_fields if name not in _UNDECIDING)
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ServedProof:
    """A proof, and the request that it is about."""

    proof: Proof
    request: TaskRequest

    def covers(self, request: TaskRequest) -> bool:
        """Return True if a request differs from the proved one only in its image."""
        return _decided_by(self.request) == _decided_by(request)


def _decided_by(request: TaskRequest) -> tuple[object, ...]:
    return request.parameters, *(getattr(request.fields, name) for name in _DECIDING)


def served_proofs(
    files: Iterable[Path],
    manifest: Manifest,
    precision: str,
    calibrations: Mapping[tuple[str, bool], Calibration],
) -> tuple[ServedProof, ...]:
    """Return the proofs of a model in calibration files.

    Raise `SettingsError` for an invalid file, and for a proof of another checkpoint, precision or
    calibration of the model.
    """
    try:
        read = chain.from_iterable(map(read_proofs, files))
        own = [proof for proof in read if proof.model == manifest.model_id]
    except CalibrationError as error:
        raise SettingsError(f"DIPTYCH_CALIBRATION: {error}") from error
    served = {
        "checkpoint": manifest.checkpoint,
        "precision": precision,
        "calibration": calibration_key(calibrations),
    }
    found = []
    for proof in own:
        about = f"DIPTYCH_CALIBRATION: the proof of {proof.model} for {proof.fields['task']}"
        for name, value in served.items():
            if getattr(proof, name) != value:
                raise SettingsError(
                    f"{about} is of the {name} {getattr(proof, name)!r}; the one served is"
                    f" {value!r}: prove it again with diptych annotate --labelled --thresholds, or"
                    " remove it"
                )
        try:
            _, request = parse_fields(PredictFields, proof.fields)
        except InvalidRequest as error:
            raise SettingsError(f"{about} has invalid fields: {error.message}") from error
        found.append(ServedProof(proof, request))
    return tuple(found)


def proof_for(model_id: str, proofs: Sequence[ServedProof], request: TaskRequest) -> Proof:
    """Return the proof of the least precision that is enough for the `min_precision` of a request.

    Raise `UnsupportedTask` if so much is not proved.
    """
    asked = request.fields.min_precision or 0.0
    own = [each.proof for each in proofs if each.covers(request)]
    enough = [proof for proof in own if proof.min_precision >= asked]
    if enough:
        return min(enough, key=lambda proof: proof.min_precision)
    if own:
        proved = f"proved is {_joined(f'{proof.min_precision:g}' for proof in own)}"
    else:
        of_task = [each.proof for each in proofs if each.request.task is request.task]
        texts = [f"{proof.min_precision:g} with {shown(proof.fields)}" for proof in of_task]
        proved = f"for {request.task.id} is proved: {_joined(texts) or 'nothing'}"
    problem = f"min_precision is {asked:g}, which is not proved for {model_id} and these fields"
    raise UnsupportedTask(f"{problem}; {proved}", "min_precision")


def _joined(texts: Iterable[str]) -> str:
    found = sorted(set(texts))
    more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    return ", ".join(found[:_MAX_SHOWN]) + more
