"""Find prose that a reader has to translate back: in comments, docstrings, messages and pages.

`python -m tests.support.prose PATH...` prints the findings of files and folders. `PATTERNS` and
`WORDS` are the rules. Generated code, generated tables and code blocks are not read.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["comment", "docstring", "message", "page"]

MAX_SENTENCE_WORDS = 30  # limit of pages
PATTERNS: dict[str, tuple[tuple[Kind, ...], re.Pattern[str]]] = {
    "comment begins with a preposition or pronoun": (
        ("comment",),
        re.compile(r"\A(?:of|that|those|whose|which|as|with|by|in|on)\b", re.IGNORECASE),
    ),
    "docstring begins with a clause or a people verb": (
        ("docstring",),
        re.compile(r"\A(?:What|Whether|That|Whose|Which|Say|Tell|Hear|Ask|Let)\b"),
    ),
    "is no NOUN": (
        ("comment", "docstring", "message", "page"),
        re.compile(
            r"(?<!\bthere )(?<!\bthere (?:may|can) )\b(?:is|are|was|were|be)\s+"
            r"(?:no(?!\s+(?:longer|more|less|fewer)\b)|none\s+of)\s+[a-z`]",
            re.IGNORECASE,
        ),
    ),
    "; None: gloss": (
        ("comment", "docstring", "message", "page"),
        re.compile(r"[;,]\s+`?None`?(?::|,| if\b| where\b| when\b| means\b)"),
    ),
    "of its own": (
        ("comment", "docstring", "message", "page"),
        re.compile(
            r"\bof\s+(?:its|their|his|one's|our)\s+own"
            r"(?=\s*(?:[.,;:)]|\Z)|\s+(?:an?|and|as|at|between|by|each|for|from|in|is|of|on|or|per"
            r"|that|the|to|under|until|when|where|which|with)\b)",
            re.IGNORECASE,
        ),
    ),
}
# One word for one thing, and the field's: what is found, and what to write instead.
WORDS = {
    "capture, not record": re.compile(
        r"\brecord(?:s|ed|ing)?\s+(?:\w+\s+){0,3}?(?:pass(?:es)?|graphs?|steps?|choices?)\b"
        r"|\b(?:pass(?:es)?|graphs?|decode\s+steps?)\s+(?:\w+\s+){0,3}?(?:is|are|was|were|be)\s+recorded\b",
        re.IGNORECASE,
    ),
    "again or restart, not anew": re.compile(r"\banew\b", re.IGNORECASE),
    "available, not to be had": re.compile(r"\bto\s+be\s+had\b", re.IGNORECASE),
    "comma-separated, not by commas": re.compile(
        r"\b(?:divided|separated)?\s*by\s+commas\b", re.IGNORECASE
    ),
    "admit, not let in": re.compile(r"\blets?\s+in\b(?!\s+(?:the|a)\b)", re.IGNORECASE),
    "in vain": re.compile(r"\bin\s+vain\b", re.IGNORECASE),
}
HASH_COMMENTS = (
    ".cfg",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    "Containerfile",
    "Makefile",
    "matrix",
    "run",
)
COMMENT_MARKS = {".css": "/*", ".js": "//", ".proto": "//", **dict.fromkeys(HASH_COMMENTS, "#")}


@dataclass(frozen=True, slots=True)
class Passage:
    """One comment, docstring, message, paragraph or cell; `line` is its first, from 1."""

    kind: Kind
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One place that breaks a rule."""

    line: int
    rule: str
    excerpt: str


def findings(path: Path) -> list[Finding]:
    """Return the findings of a file, in the order of its lines."""
    found = [finding for passage in passages(path) for finding in passage_findings(passage)]
    return sorted(found, key=lambda finding: finding.line)


def passages(path: Path) -> list[Passage]:
    """Return what a file has to read; strings of tests are data, not messages."""
    mark = COMMENT_MARKS.get(path.suffix or path.name)
    if path.suffix == ".py":
        found = python_passages(path.read_text(encoding="utf-8"))
    elif path.suffix == ".md":
        found = page_passages(path.read_text(encoding="utf-8"))
    elif mark:
        found = comment_passages(path.read_text(encoding="utf-8"), mark)
    else:
        return []
    is_test = "tests" in path.resolve().parts
    return [each for each in found if not (is_test and each.kind == "message")]


def passage_findings(passage: Passage) -> Iterator[Finding]:
    rules = [(name, rule) for name, (kinds, rule) in PATTERNS.items() if passage.kind in kinds]
    for name, rule in [*rules, *WORDS.items()]:
        for match in rule.finditer(passage.text):
            yield finding_at(passage, match.start(), match.end(), name)
    if passage.kind == "page":
        for start, end in sentences(passage.text):
            count = num_words(passage.text[start:end])
            if count > MAX_SENTENCE_WORDS:
                yield finding_at(passage, start, start + 60, f"sentence of {count} words")


def finding_at(passage: Passage, start: int, end: int, rule: str) -> Finding:
    excerpt = " ".join(passage.text[max(0, start - 30) : end + 30].split())
    return Finding(passage.line + passage.text.count("\n", 0, start), rule, excerpt)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence: it ends before a capital, a mark or the text's end."""
    start = 0
    for match in re.finditer(r"[.!?][)\"*]*(?=\s+[A-Z`\"(\[*\d]|\s*\Z)", text):
        yield start, match.end()
        start = match.end() + len(re.match(r"\s*", text[match.end() :])[0])  # type: ignore[index]
    if text[start:].strip():
        yield start, len(text)


def num_words(sentence: str) -> int:
    """Count words; a piece of code, a link's target and a dash count as none or one."""
    plain = re.sub(r"\]\([^)]*\)", "]", sentence)
    plain = re.sub(r"`[^`]*`", "code", plain)
    return len([word for word in plain.split() if re.search(r"\w", word)])


def python_passages(source: str) -> Iterator[Passage]:
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    yield from python_comments(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr):
            pieces = [
                piece.value if isinstance(piece, ast.Constant) else "…" for piece in node.values
            ]
            yield Passage("message", node.lineno, "".join(map(str, pieces)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Passage(
                "docstring" if id(node) in docstrings else "message", node.lineno, node.value
            )
        waiting.extend(ast.iter_child_nodes(node) if not isinstance(node, ast.JoinedStr) else ())


def python_comments(source: str) -> Iterator[Passage]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    lines = [
        (token.start[0], token.string, token.line.lstrip().startswith("#")) for token in comments
    ]
    yield from joined_comments([(line, text.lstrip("#"), alone) for line, text, alone in lines])


def comment_passages(text: str, mark: str) -> Iterator[Passage]:
    """Yield the comments of a file: a mark starts one at a line's start or after a blank."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.search(rf"(?:^|\s)(?:{re.escape(mark)})+(?!!)(.*)$", line)
        if match:
            found.append((number, match[1].removesuffix("*/"), not line[: match.start()].strip()))
    yield from joined_comments(found)


def joined_comments(lines: list[tuple[int, str, bool]]) -> Iterator[Passage]:
    """Join the comments that stand alone on consecutive lines."""
    block: list[tuple[int, str]] = []
    for number, text, alone in lines:
        if block and not (alone and number == block[-1][0] + 1):
            yield Passage("comment", block[0][0], "\n".join(each for _, each in block).strip())
            block = []
        block.append((number, text.strip()))
        if not alone:
            yield Passage("comment", number, text.strip())
            block = []
    if block:
        yield Passage("comment", block[0][0], "\n".join(each for _, each in block).strip())


def page_passages(text: str) -> Iterator[Passage]:
    """Yield paragraphs, list items and cells of a Markdown page that were written by hand."""
    blanked = re.sub(
        r"^```.*?^```$|^<!-- table:.*?^<!-- end -->$|^\|[-: |]+\|$",
        lambda match: "\n" * match[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    item = r"(?:^ *(?:[-*]|\d+\.) +)?"
    for match in re.finditer(
        rf"{item}(?:(?!^ *(?:[-*]|\d+\.) |^\||^#).+\n?)+|^\|.*$|^#.*$", blanked, re.MULTILINE
    ):
        line = 1 + blanked.count("\n", 0, match.start())
        cells = match[0].split("|") if match[0].startswith("|") else [match[0]]
        for cell in cells:
            yield Passage("page", line, re.sub(r"\A *(?:[-*]|\d+\.|#+) +", "", cell).rstrip())


def files(path: Path) -> list[Path]:
    """Return the files under a folder that people write, or the file itself."""
    if path.is_file():
        return [path]
    found = [each for each in path.rglob("*") if each.is_file() and "_pb2" not in each.name]
    hidden = {"node_modules", "results", "build", "__pycache__"}
    return sorted(each for each in found if not hidden & {*each.relative_to(path).parts})


def main(arguments: list[str]) -> int:
    """Print the findings of every path, and their number by rule."""
    rules = Counter[str]()
    for file in [file for argument in arguments for file in files(Path(argument))]:
        for finding in findings(file):
            print(f"{file}:{finding.line}: {finding.rule}: {finding.excerpt}")
            rules[re.sub(r"\d+", "n", finding.rule)] += 1
    print("\n".join(f"{count:5} {rule}" for rule, count in rules.most_common()) or "no findings")
    return 1 if rules else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
