import asyncio

from tests.support.request_path import request_path


def test_a_predict_crosses_few_rooms() -> None:
    """Numbers of `python -m tests.support.request_path`; a change that lowers them lowers these."""
    path = asyncio.run(request_path())
    assert len(path.files) <= 31
    assert len(path.functions) <= 118
    assert path.num_changes <= 99
