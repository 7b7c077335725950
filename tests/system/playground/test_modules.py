"""The page's plain functions, each by a table of cases, in the browser that runs them."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from diptych_client.cli.app import shipped_recipes
from tests.support.browser import Playground
from tests.support.running_service import RunningService


@pytest.fixture(scope="module")
def page(browser: Browser, service: RunningService) -> Iterator[Playground]:
    """The page, opened once: its modules can be imported there."""
    with browser.new_page() as page:
        page.goto(f"{service.url}/playground")
        yield Playground(page, service.url)


def test_overlap_of_boxes(page: Playground) -> None:
    cases = {
        "[0, 0, 10, 10], [0, 0, 10, 10]": 1,
        "[0, 0, 10, 10], [5, 0, 15, 10]": 1 / 3,
        "[0, 0, 10, 10], [10, 10, 20, 20]": 0,
        "[0, 0, 10, 10], [30, 30, 40, 40]": 0,
        "[5, 5, 5, 5], [5, 5, 5, 5]": 0,
    }
    for boxes, expected in cases.items():
        assert page.module("geometry", f"m.iou({boxes})") == pytest.approx(expected), boxes


def test_a_box_is_dragged_in_any_direction_and_ends_at_the_image(page: Playground) -> None:
    image = "{width: 100, height: 50}"
    assert page.module("geometry", f"m.draggedBox([90, 40], [10.04, 5.06], {image})") == [
        10,
        5.1,
        90,
        40,
    ]
    assert page.module("geometry", f"m.draggedBox([10, 10], [400, -9], {image})") == [
        10,
        0,
        100,
        10,
    ]


@pytest.mark.parametrize(
    ("left", "right", "both", "only_left", "only_right"),
    [
        ([], [], [], [], []),
        ([("a", 0)], [], [], [0], []),
        ([("a", 0)], [("a", 1)], [(0, 0)], [], []),
        ([("Red  Star", 0)], [("red star", 0)], [(0, 0)], [], []),
        ([("a", 0)], [("b", 0)], [], [0], [0]),
        ([("a", 0)], [("a", 9)], [], [0], [0]),
        # The nearest pair goes first, whatever the order.
        ([("a", 2), ("a", 0)], [("a", 0), ("a", 3)], [(0, 1), (1, 0)], [], []),
        ([("a", 0), ("a", 1)], [("a", 1)], [(1, 0)], [0], []),
        ([("", 0)], [("", 1)], [(0, 0)], [], []),
    ],
)
def test_objects_are_paired_by_label_and_overlap(
    page: Playground, left: Any, right: Any, both: Any, only_left: Any, only_right: Any
) -> None:
    shapes = "all => all.map(([label, x], index) => ({index, label, box: [x, 0, x + 10, 10]}))"
    found = page.page.evaluate(
        f"""async ([left, right]) => {{
          const {{matchShapes}} = await import("/playground/js/matching.js");
          const shapes = {shapes};
          const {{both, onlyLeft, onlyRight}} = matchShapes(shapes(left), shapes(right));
          const index = (shape) => shape.index;
          return [both.map((pair) => pair.map(index)), onlyLeft.map(index), onlyRight.map(index)];
        }}""",
        [left, right],
    )
    assert sorted(map(tuple, found[0])) == sorted(both)
    assert found[1:] == [only_left, only_right]


@pytest.mark.parametrize(
    ("left", "right", "passages"),
    [
        ("", "", ""),
        ("a b", "a  b\n", "=a b"),
        ("a b", "", "<a b"),
        ("", "a b", ">a b"),
        ("a red star", "a blue star", "=a <red >blue =star"),
        ("a b c d", "b d e", "<a =b <c =d >e"),
        ("x a", "a x", "<x =a >x"),
    ],
)
def test_words_of_two_texts(page: Playground, left: str, right: str, passages: str) -> None:
    found = page.page.evaluate(
        "async ([left, right]) => (await import('/playground/js/word-diff.js')).diffWords(left,"
        " right)",
        [left, right],
    )
    signs = {"both": "=", "left": "<", "right": ">"}
    assert " ".join(signs[each["side"]] + " ".join(each["words"]) for each in found) == passages


def test_events_are_read_however_their_bytes_are_cut(page: Playground) -> None:
    stream = (
        'event: token\ndata: {"text": "é"}\n\n: a comment\nevent: result\r\ndata: one\r\ndata:'
        " two\r\n\r\ncut off"
    )
    found = page.page.evaluate(
        """async (stream) => {
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
        }""",
        stream,
    )
    expected = [
        {"event": "token", "data": '{"text": "é"}'},
        {"event": "result", "data": "one\ntwo"},
    ]
    assert found == [expected] * 3


def test_a_link_is_read_as_it_was_written(page: Playground) -> None:
    fields = {
        "labels": ["a & b", "ü=1", "<b>"],
        "question": "why #?",
        "region": [1, 2.5, 3, 4],
        "constrained": False,
    }
    link, read = page.page.evaluate(
        """async (fields) => {
          const {linkOf, readLink} = await import("/playground/js/run-link.js");
          const link = linkOf("a_task", fields, "a sample");
          return [link, readLink(link)];
        }""",
        fields,
    )
    assert link.startswith("#task=a_task&")
    texts = {"question": ["why #?"], "region": ["1", "2.5", "3", "4"], "constrained": ["false"]}
    assert read == {
        "task": "a_task",
        "sample": "a sample",
        "isOfOwnImage": False,
        "fields": {"labels": fields["labels"], **texts},
    }
    for nothing in ("", "#", "#models"):
        assert page.module("run-link", f"m.readLink({nothing!r})") is None


def test_the_recipes_are_those_of_the_client(page: Playground) -> None:
    shipped = {
        recipe.name: {"description": recipe.description, "steps": list(recipe.steps)}
        for recipe in shipped_recipes()
    }
    assert page.module("recipes", "m.RECIPES") == shipped
