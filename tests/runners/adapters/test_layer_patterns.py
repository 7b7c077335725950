"""Patterns of layers match as in peft, whatever their form, and none takes long."""

import pytest
from peft.utils.other import get_pattern_key

from runners.adapters.peft import (
    MAX_ALL_CHARS,
    MAX_PATTERN_CHARS,
    MAX_PATTERNS,
    LayerPatterns,
)
from wire.artifacts.adapter_folder import AdapterError

NAMES = (
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.10.self_attn.q_proj",
    "model.language_model.layers.0.self_attn.q_proj_norm",
    "model.language_model.layers.0.self_attn.my_q_proj",
    "model.language_model.layers.0.self_attn.k_proj",
    "model.language_model.encoder.layers.1.fc1",
    "model.language_model.decoder.layers.1.encoder_attn.out_proj",
    "language_model.model.layers.0.mlp.up_proj",
    "model.layers.0",
    "fc1",
    "layersX0Xself_attnXq_proj",
)
PATTERNS = r"""
q_proj self_attn.q_proj self_attn\.q_proj layers.0.self_attn.q_proj layers.0 0 proj
model.language_model.layers.0.self_attn.q_proj model model.layers language_model.model.layers
q_proj|k_proj (q|k)_proj (?:q|k)_proj self_attn.(q|k)_proj layers.(0|1).* q_proj| | ()
^model.language_model.layers.0.self_attn.q_proj ^q_proj ^fc1 q_proj$ ^fc1$ a$b q_proj^ .*q_proj
.*\.layers\.[0-9]+\.self_attn\..* layers\.\d\..* layers\.\d+\..* q.proj .+ . [qk]_proj [^q]_proj
[a-p]_proj [\w.]+_proj layers[.]0[.]self_attn[.]q_proj \w+_attn\.\w+ (q_)?proj
(layers.0.)?self_attn.q_proj q_proj)|(fc1 fc+1 (f|fc)(c1|1) (.*_proj)+ f.*?1
"""
REFUSED = r"""
(?=q)q_proj (?<!q)_proj (.)\1 (?P<side>q)_proj (?i)Q_PROJ (?i:Q)_proj q{1}_proj q++ q_proj\Z
\bq_proj \x71_proj é ( [q q_proj) * []q]_proj
"""


@pytest.mark.parametrize("pattern", ["", *PATTERNS.split()])
def test_a_pattern_matches_the_layers_that_it_matches_in_peft(pattern: str) -> None:
    patterns = LayerPatterns.compile("rank_pattern", {pattern: 4})
    found = {name: patterns.value_of(name, 2) for name in NAMES}
    assert found == {
        name: 4 if get_pattern_key([pattern], name) == pattern else 2 for name in NAMES
    }


def test_of_several_patterns_the_first_that_matches_counts() -> None:
    values = {"k_proj": 1.0, ".*proj": 2.0, "q_proj": 3.0, "fc1": 4.0}
    patterns = LayerPatterns.compile("alpha_pattern", values)
    expected = {name: values.get(get_pattern_key(list(values), name), 9.0) for name in NAMES}
    assert {name: patterns.value_of(name, 9.0) for name in NAMES} == expected
    assert set(expected.values()) == {1.0, 2.0, 4.0, 9.0}


@pytest.mark.parametrize(
    "pattern", [r"(\w+\.?)+x", "(.*)*x", "(.|.|.)*x", "(a|a)*" * 80 + "x", ".*" * 240 + "x"]
)
def test_a_pattern_that_takes_for_ever_where_it_is_tried_again_and_again_takes_no_time(
    pattern: str,
) -> None:
    patterns = LayerPatterns.compile("rank_pattern", {pattern: 4})
    assert {patterns.value_of(name, 2) for name in (*NAMES, "a" * 300)} == {2}


@pytest.mark.parametrize("pattern", [*REFUSED.split(), "q_proj\n", "a" * (MAX_PATTERN_CHARS + 1)])
def test_other_patterns_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(AdapterError) as refused:
        LayerPatterns.compile("rank_pattern", {"q_proj": 1, pattern: 4})
    (line,) = str(refused.value).splitlines()
    assert line.startswith(
        f"rank_pattern has the pattern {pattern[:MAX_PATTERN_CHARS]!r}, which is not supported;"
        " allow"
    )


@pytest.mark.parametrize(
    ("number", "characters"), [(MAX_PATTERNS + 1, 4), (MAX_ALL_CHARS // 400 + 1, 400)]
)
def test_the_patterns_of_an_adapter_are_bounded_in_number_and_size(
    number: int, characters: int
) -> None:
    values = {f"{index:0{characters}}": 4.0 for index in range(number)}
    with pytest.raises(
        AdapterError,
        match=f"rank_pattern has {number} patterns of {number * characters} characters",
    ):
        LayerPatterns.compile("rank_pattern", values)
    LayerPatterns.compile("rank_pattern", dict(list(values.items())[1:]))
