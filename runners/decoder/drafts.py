"""Drafts: likely next tokens of an answer, read in the same pass as its last token.

A pass of the model over a few tokens takes little longer than over one. A token that the rules
force, and words of the prompt where the grammar asks for them, are therefore read before the model
has chosen them. Each is kept only if it is the token that the model chooses after those before it:
answers are the same as without drafts. Knows no family. Source: greedy speculative decoding
(Leviathan et al., arXiv 2211.17192) with drafts from the prompt
(github.com/apoorvumang/prompt-lookup-decoding). Shapes: B slots, T tokens of a slot in a pass.
"""

from collections.abc import Iterable, Sequence

# tokens that take as long as a pass without any, measured at commit 290efa6
_PASS_COST = 4
# limit of slots in use: with more, drafts of equal length rarely coincide
MAX_SLOTS = 8


def width_of(drafts: Iterable[Sequence[int]]) -> int:
    """Return T, the number of tokens of each slot in a pass over `drafts`."""
    return 1 + max(map(len, drafts))


def rows_of(drafts: Sequence[Sequence[int]]) -> list[range]:
    """Return the rows of each slot among the B * T of a pass over `drafts`."""
    starts = range(0, len(drafts) * width_of(drafts), width_of(drafts))
    return [
        range(start, start + 1 + len(draft)) for start, draft in zip(starts, drafts, strict=True)
    ]


def paying(drafts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the drafts, cut to the length at which a pass reads most tokens for its time.

    It reads as many tokens of each slot as of the one with the longest draft; all drafts are taken
    to be right.
    """

    def tokens_by_cost(length: int) -> float:
        num_tokens = sum(1 + min(len(draft), length) for draft in drafts)
        return num_tokens / (_PASS_COST + len(drafts) * (1 + length))

    best = max(range(1 + max(map(len, drafts))), key=tokens_by_cost)
    return [draft[:best] for draft in drafts]
