"""The page's plain functions, each by a table of cases, in the browser that runs them."""

from typing import Any

import pytest

from diptych_client.tools.cli.app import shipped_recipes
from tests.support.browser import Playground

MATCH = """async ([left, right]) => {
  const {matchShapes} = await import("/playground/js/matching.js");
  const shapes = all => all.map(([label, x], index) => ({index, label, box: [x, 0, x + 10, 10]}));
  const {both, onlyLeft, onlyRight} = matchShapes(shapes(left), shapes(right));
  const index = (shape) => shape.index;
  const pairs = both.map((pair) => pair.map(index)).sort();
  return [pairs, onlyLeft.map(index), onlyRight.map(index)];
}"""
DIFF = """async ([left, right]) => {
  const {diffWords} = await import("/playground/js/word-diff.js");
  const signs = {both: "=", left: "<", right: ">"};
  return diffWords(left, right).map(({side, words}) => signs[side] + words.join(" ")).join(" ");
}"""
EVENTS = """async (stream) => {
  const {serverEvents} = await import("/playground/js/event-stream.js");
  const bytes = new TextEncoder().encode(stream);
  const all = [];
  for (const size of [1, 3, bytes.length]) {
    const body = new ReadableStream({
      start(controller) {
        for (let at = 0; at < bytes.length; at += size)
          controller.enqueue(bytes.slice(at, at + size));
        controller.close();
      },
    });
    all.push(await Array.fromAsync(serverEvents(body)));
  }
  return all;
}"""
LINK = """async (fields) => {
  const {linkOf, readLink} = await import("/playground/js/run-link.js");
  const link = linkOf("a_task", fields, "a sample");
  return [link, readLink(link)];
}"""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("m.iou([0, 0, 10, 10], [0, 0, 10, 10])", 1),
        ("m.iou([0, 0, 10, 10], [5, 0, 15, 10])", pytest.approx(1 / 3)),
        ("m.iou([0, 0, 10, 10], [30, 30, 40, 40])", 0),
        ("m.iou([5, 5, 5, 5], [5, 5, 5, 5])", 0),
        # a box is dragged in any direction and ends at the image
        ("m.draggedBox([90, 40], [10.04, 5.06], {width: 100, height: 50})", [10, 5.1, 90, 40]),
        ("m.draggedBox([10, 10], [400, -9], {width: 100, height: 50})", [10, 0, 100, 10]),
    ],
)
def test_geometry_of_boxes(opened: Playground, expression: str, expected: Any) -> None:
    assert opened.module("geometry", expression) == expected


@pytest.mark.parametrize(
    ("function", "left", "right", "expected"),
    [
        (MATCH, [], [], [[], [], []]),
        (MATCH, [["a", 0]], [], [[], [0], []]),
        (MATCH, [["Red  Star", 0]], [["red star", 0]], [[[0, 0]], [], []]),
        (MATCH, [["a", 0]], [["b", 0]], [[], [0], [0]]),
        (MATCH, [["a", 0]], [["a", 9]], [[], [0], [0]]),
        # The nearest pair goes first, whatever the order.
        (MATCH, [["a", 2], ["a", 0]], [["a", 0], ["a", 3]], [[[0, 1], [1, 0]], [], []]),
        (MATCH, [["a", 0], ["a", 1]], [["a", 1]], [[[1, 0]], [0], []]),
        (DIFF, "", "", ""),
        (DIFF, "a b", "a  b\n", "=a b"),
        (DIFF, "a b", "", "<a b"),
        (DIFF, "a red star", "a blue star", "=a <red >blue =star"),
        (DIFF, "a b c d", "b d e", "<a =b <c =d >e"),
        (DIFF, "x a", "a x", "<x =a >x"),
    ],
)
def test_comparison_of_two_answers(
    opened: Playground, function: str, left: Any, right: Any, expected: Any
) -> None:
    assert opened.page.evaluate(function, [left, right]) == expected


def test_events_are_read_in_any_pieces(opened: Playground) -> None:
    stream = (
        'event: token\ndata: {"text": "é"}\n\n: a comment\nevent: result\r\ndata: one\r\ndata:'
        " two\r\n\r\ncut off"
    )
    expected = [
        {"event": "token", "data": '{"text": "é"}'},
        {"event": "result", "data": "one\ntwo"},
    ]
    assert opened.page.evaluate(EVENTS, stream) == [expected] * 3


def test_link_is_read_as_it_was_written(opened: Playground) -> None:
    fields: dict[str, Any] = {"labels": ["a & b", "ü=1", "<b>"], "question": "why #?"}
    fields |= {"region": [1, 2.5, 3, 4], "constrained": False}
    link, parsed = opened.page.evaluate(LINK, fields)
    assert link.startswith("#task=a_task&")
    texts = {"question": ["why #?"], "region": ["1", "2.5", "3", "4"], "constrained": ["false"]}
    assert parsed == {
        "task": "a_task",
        "sample": "a sample",
        "isOfOwnImage": False,
        "fields": {"labels": fields["labels"], **texts},
    }
    for link in ("", "#", "#models"):
        assert opened.module("run-link", f"m.readLink('{link}')") is None


def test_recipes_are_those_of_the_client(opened: Playground) -> None:
    shipped = {}
    for recipe in shipped_recipes():
        steps = list(recipe.steps)
        shipped[recipe.name] = {"description": recipe.description, "steps": steps}
    assert opened.module("recipes", "m.RECIPES") == shipped
