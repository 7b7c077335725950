"""The public contract: what clients and operators see changes only together with its record."""

import difflib

from tests.support.contract import CONTRACT, contract


def test_contract_is_as_recorded() -> None:
    differences = list[str]()
    for name, text in contract().items():
        recorded = (CONTRACT / name).read_text(encoding="utf-8")
        differences += difflib.unified_diff(
            recorded.splitlines(), text.splitlines(), f"recorded {name}", f"code's {name}", n=0
        )
    assert not differences, "\n".join(
        ["a wanted change is recorded by `python -m tests.support.contract`:", *differences]
    )
