"""Answers as a table of pandas, which is imported when called: it is an optional dependency."""

from typing import Any

from diptych_client.results import Answer, TextRegion, TextResult, box_of, items_of, label_of

COLUMNS = ("model", "task", "label", "score", "x1", "y1", "x2", "y2", "shape")


def table_of(answer: Answer) -> Any:  # pandas has no types
    """Return a row for each object, or for the text; `shape` is a quad or polygons."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install pandas") from error
    rows: list[tuple[Any, ...]] = []
    if isinstance(answer.result, TextResult):
        rows.append((answer.model, answer.task, answer.result.text, *[None] * 6))
    for item in items_of(answer.result):
        shape = item.quad_xy if isinstance(item, TextRegion) else getattr(item, "polygons_xy", None)
        where = (*box_of(item), shape)
        rows.append((answer.model, answer.task, label_of(item), item.score, *where))
    return pandas.DataFrame(rows, columns=list(COLUMNS))
