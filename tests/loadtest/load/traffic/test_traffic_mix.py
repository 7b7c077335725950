"""The file of the traffic mix: the committed one is valid, and all problems of an invalid one are
reported.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.load.traffic.traffic_mix import APIS, MixError, read_mix
from tests.support.export_cli import ROOT

COMMITTED = ROOT / "loadtest" / "load" / "traffic_mix.yaml"


def mix_file(folder: Path, **changes: Any) -> Path:
    """Write a small mix with changed parts; None removes a part."""
    parts: dict[str, Any] = {
        "apis": {"rest": 1},
        "images": {"fresh": 0.5, "sizes": [{"width": 64, "height": 48, "weight": 1}]},
        "tasks": [{"task": "ocr", "weight": 1}],
        "slos_ms": {"ocr": {"answer": 400, "first_token": 300}},
    }
    kept = {name: part for name, part in (parts | changes).items() if part is not None}
    file = folder / "mix.yaml"
    file.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return file


def test_the_committed_mix_has_every_api() -> None:
    mix = read_mix(COMMITTED)
    assert set(mix.apis) == set(APIS)
    assert all(mix.apis.values())


def test_deadlines_are_multiples_of_slos(tmp_path: Path) -> None:
    mix = read_mix(mix_file(tmp_path, deadline_slos=2.5))
    assert mix.deadline_s("ocr") == mix.longest_deadline_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": None}, "images: Field required"),
        ({"colour": "red"}, "colour: "),
        ({"apis": {"soap": 1}}, "soap"),
        (
            {"apis": {"rest": -1}},
            "apis.rest: Input should be greater than or equal to 0, given '-1'",
        ),
        (
            {"apis": {"rest": 0}},
            "apis: one of rest, grpc, stream, compare must have a weight above 0",
        ),
        ({"tasks": []}, "tasks: "),
        (
            {"tasks": [{"task": "ocr", "weight": 0}]},
            "tasks.0.weight: Input should be greater than 0, given '0'",
        ),
        ({"tasks": [{"task": "ocr", "weight": 1, "labels": []}]}, "tasks.0.labels: "),
        ({"tasks": [{"task": "captioning", "weight": 1}]}, "slos_ms: task captioning has no SLO"),
        ({"slos_ms": {"ocr": {"answer": 400}}}, "slos_ms.ocr.first_token: Field required"),
        (
            {"images": {"fresh": 2, "sizes": []}},
            "images.fresh: Input should be less than or equal to 1, given '2'",
        ),
    ],
)
def test_an_invalid_mix_is_reported(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    file = mix_file(tmp_path, **changes)
    with pytest.raises(MixError) as raised:
        read_mix(file)
    assert str(raised.value).startswith(f"{file}:\n")
    assert problem in str(raised.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(MixError, match=r"(?s)images: .*apis\.rest: |apis\.rest: .*images: "):
        read_mix(mix_file(tmp_path, images=None, apis={"rest": -1}))


def test_invalid_yaml_and_a_missing_file_are_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    for name in ("bad.yaml", "none.yaml"):
        with pytest.raises(MixError, match=f"{name} cannot be read"):
            read_mix(tmp_path / name)
