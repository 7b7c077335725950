"""Which tokens can continue a well-formed answer: a pattern over a vocabulary, followed token by token.

A pattern (runners/transport/patterns.py) becomes a nondeterministic automaton over classes of tokens (Thompson, CACM
11(6), 1968) whose state sets are made as they are met. A text is followed byte by byte, whatever tokens spell it. It
knows tokens and no tasks. Shapes: V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runners.decoder.vocabulary import Vocabulary
from runners.transport.patterns import ExactText, InOrder, OneOf, OneToken, Pattern, Repeated

# Where the automaton stands: nodes, and of a text how many of its bytes are written.
ConstraintState = frozenset[tuple[int, int]]


@dataclass(slots=True)
class _Node:
    """A state: what it reads (None: nothing) and where that leads."""

    reads: OneToken | ExactText | None = None
    target: int = 0
    jumps: list[int] = field(default_factory=list)  # to nodes that are reached without a token


class Constraint:
    """The answers that match one pattern."""

    def __init__(self, pattern: Pattern, vocabulary: Vocabulary, eos_token_ids: Iterable[int]) -> None:
        self._vocabulary = vocabulary
        self._eos_token_ids = tuple(eos_token_ids)
        self._nodes: list[_Node] = []
        self._end = self._new_node()
        self._start = self._closure([(self._add(pattern, self._end), 0)])
        self._allowed: dict[ConstraintState, Tensor] = {}

    def start(self) -> ConstraintState:
        """Return the state before the first token."""
        return self._start

    def after(self, state: ConstraintState, token_id: int) -> ConstraintState:
        """Return the state after `token_id`, which must be allowed in `state`."""
        return self._closure(place for before in state for place in self._step(before, token_id))

    def allowed_ids(self, state: ConstraintState) -> list[int]:
        """Return the tokens that can come next, ascending; the end tokens where the answer may end."""
        allowed: set[int] = set()
        for index, num_written in state:
            match self._nodes[index].reads:
                case OneToken() as token:
                    allowed.update(self._vocabulary.ids_of(token.of))
                case ExactText() as text:
                    allowed.update(self._vocabulary.ids_that_begin(text.text.encode()[num_written:]))
        if (self._end, 0) in state:
            allowed.update(self._eos_token_ids)
        return sorted(allowed)

    def masked(self, state: ConstraintState, logprobs: Tensor) -> Tensor:
        """Return `logprobs` (V,) with every token that cannot come next at -inf."""
        if state not in self._allowed:
            self._allowed[state] = torch.tensor(self.allowed_ids(state), dtype=torch.long, device=logprobs.device)
        ids = self._allowed[state]
        return torch.full_like(logprobs, -torch.inf).index_copy_(0, ids, logprobs[ids])

    def _step(self, place: tuple[int, int], token_id: int) -> Iterable[tuple[int, int]]:
        """Yield where one place of a state leads."""
        index, num_written = place
        node = self._nodes[index]
        match node.reads:
            case OneToken() as token if token_id in self._vocabulary.ids_of(token.of):
                yield node.target, 0
            case ExactText() as text:
                rest, written = text.text.encode()[num_written:], self._vocabulary.bytes_of(token_id)
                if written and rest.startswith(written):
                    yield (node.target, 0) if rest == written else (index, num_written + len(written))

    def _closure(self, places: Iterable[tuple[int, int]]) -> ConstraintState:
        """Return the places with all that are reached from them without a token."""
        reached: set[tuple[int, int]] = set()
        todo = list(places)
        while todo:
            place = todo.pop()
            if place not in reached:
                reached.add(place)
                todo.extend((jump, 0) for jump in self._nodes[place[0]].jumps)
        return frozenset(reached)

    def _new_node(self, reads: OneToken | ExactText | None = None, target: int = 0) -> int:
        self._nodes.append(_Node(reads, target))
        return len(self._nodes) - 1

    def _add(self, pattern: Pattern, then: int) -> int:
        """Add the nodes of a pattern that goes on at node `then`; return its first."""
        match pattern:
            case OneToken() | ExactText():
                return self._new_node(pattern, then) if pattern.reads_something else then
            case InOrder(parts=parts):
                for part in reversed(parts):
                    then = self._add(part, then)
                return then
            case OneOf(options=options):
                fork = self._new_node()
                self._nodes[fork].jumps = [self._add(option, then) for option in options]
                return fork
            case Repeated():
                return self._add_repeat(pattern, then)

    def _add_repeat(self, repeat: Repeated, then: int) -> int:
        """Add `min` copies, then as many optional ones as `max` allows, or a loop."""
        if repeat.max is None:
            fork = self._new_node()
            self._nodes[fork].jumps = [then, self._add(repeat.part, fork)]
            then = fork
        else:
            for _ in range(repeat.max - repeat.min):
                fork = self._new_node()
                self._nodes[fork].jumps = [then, self._add(repeat.part, then)]
                then = fork
        for _ in range(repeat.min):
            then = self._add(repeat.part, then)
        return then


class Constraints:
    """The constraints of one decoder; those that were used lately are kept ready."""

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: Iterable[int], max_kept: int = 256) -> None:
        self._make: Callable[[Pattern], Constraint] = lambda pattern: Constraint(pattern, vocabulary, eos_token_ids)
        self._max_kept = max_kept
        self._kept: dict[str, Constraint] = {}

    def get(self, pattern: Pattern) -> Constraint:
        """Return the constraint of a pattern."""
        key = pattern.model_dump_json()
        constraint = self._kept.pop(key, None) or self._make(pattern)
        self._kept[key] = constraint  # last in the order: used most lately
        while len(self._kept) > self._max_kept:
            del self._kept[next(iter(self._kept))]
        return constraint
