"""PEFT's folders: names, ranks, factors and patterns are those of peft; what a runner could not
reproduce is refused by name.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from runners.adapters.peft import (
    MAX_ALL_CHARS,
    MAX_PATTERNS,
    AdapterParts,
    BaseWeights,
    PeftConfig,
    Product,
    compile_patterns,
    read_adapter,
    read_parts,
    value_of,
)
from wire.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits
from wire.artifacts.manifest import ArtifactError

LAYER = "model.language_model.layers.0.self_attn.q_proj"
EMBEDDINGS = "model.language_model.embed_tokens"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
IN = 6
OUT = 4
LIMITS = AdapterLimits(max_rank=16, max_bytes=10_000)


def safetensors_file(header: object, num_data_bytes: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_data_bytes)


def pair(layer: str, rank: int = 2) -> dict[str, Tensor]:
    name = f"base_model.model.{layer}"
    return {
        f"{name}.lora_A.weight": torch.ones(rank, IN, dtype=torch.bfloat16),
        f"{name}.lora_B.weight": torch.ones(OUT, rank, dtype=torch.bfloat16),
    }


def converted(folder: Path, tensors: dict[str, Tensor], **config: Any) -> dict[str, Tensor]:
    return dict(parts(folder, tensors, **config).language)


def parts(folder: Path, tensors: dict[str, Tensor], **config: Any) -> AdapterParts:
    write(folder, tensors, **config)
    return read_parts(folder, folder / "decoder.safetensors", LIMITS)


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / WEIGHTS_FILE)
    base = {
        f"{LAYER}.weight": torch.zeros(OUT, IN),
        f"{EMBEDDINGS}.weight": torch.arange(OUT * IN).view(OUT, IN).float(),
    }
    save_file(base, folder / "decoder.safetensors")


BOTH_PATTERNS = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}}


@pytest.mark.parametrize(
    ("config", "rank", "factor"),
    [
        ({}, 2, 4.0),
        ({"r": LIMITS.max_rank}, LIMITS.max_rank, 0.5),
        ({"use_rslora": True}, 2, 8 / math.sqrt(2)),
        ({"rank_pattern": {"q_proj": 4}}, 4, 2.0),
        ({"rank_pattern": {"k_proj": 4}}, 2, 4.0),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 1}}, 2, 0.5),
        (BOTH_PATTERNS | {"use_rslora": True}, 4, 3.0),
    ],
    ids=str,
)
def test_the_factor_follows_rank_and_alpha(
    tmp_path: Path, config: dict[str, Any], rank: int, factor: float
) -> None:
    tensors = converted(tmp_path, pair(LAYER, rank), **config)
    assert torch.equal(tensors[f"{LAYER}.down"], torch.ones(rank, IN))
    assert torch.allclose(tensors[f"{LAYER}.up"], torch.full((OUT, rank), factor))


PREFIX = "base_model.model."
NORM = {f"{PREFIX}vision_tower.norm.weight": torch.ones(2)}
MUST_BE = r"with rank 2 and the base's weight of \(4, 6\) they must be \(2, 6\) and \(4, 2\)"
UNSERVED: list[tuple[dict[str, Tensor], list[str] | None, str]] = [
    ({f"{PREFIX}{LAYER}.weight": torch.ones(OUT, IN)}, None, "q_proj.weight, which is not suppor"),
    (pair("lm_head", 3), None, f"lora_B of lm_head .* {MUST_BE}"),
    (pair(LAYER, 3), None, MUST_BE),
    (pair(EMBEDDINGS), None, "embed_tokens, which is not supported; allowed"),
    ({f"{PREFIX}{EMBEDDINGS}.lora_embedding_A": torch.ones(2, OUT)}, None, "lora_embedding_A, whi"),
    (pair("another.layer"), None, "another.layer, which is not supported; allowed are layers"),
    (pair(LAYER.replace("0", "9")), None, "layers.9.self_attn.q_proj, which its base does not"),
    ({f"{PREFIX}{LAYER}.lora_magnitude_vector": torch.ones(4)}, None, "lora_magnitude_vector"),
    (dict(list(pair(LAYER).items())[:1]), None, "has only lora_A of"),
    ({}, None, "adapts no layer"),
    ({f"{PREFIX}lm_head.weight": torch.ones(2)}, ["lm_head"], "changes lm_head.weight, which is"),
    (NORM, None, "changes vision_tower.norm.weight, which"),
    (pair("vision_tower.norm") | NORM, ["norm"], "both a product for model.vision_tower.norm.wei"),
]


@pytest.mark.parametrize(("tensors", "modules", "message"), UNSERVED, ids=range(len(UNSERVED)))
def test_weights_that_cannot_be_served_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], modules: list[str] | None, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        parts(tmp_path, tensors, modules_to_save=modules)


def test_whole_weights_alone_are_an_adapter(tmp_path: Path) -> None:
    read = parts(tmp_path, NORM, modules_to_save=["norm"])
    assert read.vision_weights == ("model.vision_tower.norm.weight",)


def test_a_runner_refuses_a_vision_part(tmp_path: Path) -> None:
    write(tmp_path, pair(LAYER) | pair("model.multi_modal_projector.linear"))
    message = r"it changes model\.multi_modal_projector\.linear\.weight .* python -m export"
    with pytest.raises(ArtifactError, match=message):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)


@pytest.mark.parametrize(
    ("rank", "weight", "message"),
    [
        (2, None, "changes vision_tower.conv, which its base does not have"),
        (3, (4, 6, 3, 3), r"must be \(3, 6, 3, 3\) and \(4, 3, 1, 1\)"),
        (2, (4, 6, 5, 5), r"must be \(2, 6, 5, 5\) and \(4, 2, 1, 1\)"),
    ],
)
def test_a_product_must_fit_its_layer(
    rank: int, weight: tuple[int, ...] | None, message: str
) -> None:
    product = Product("vision_tower.conv", rank, torch.ones(2, 6, 3, 3), torch.ones(4, 2, 1, 1))
    with pytest.raises(ArtifactError, match=message):
        product.check(weight)
    Product("vision_tower.conv", 2, product.down, product.up).check((4, 6, 3, 3))


A_NAME, B_NAME = pair(LAYER)
UNREADABLE = "cannot be read as safetensors"


def header(dtype: str = "F32", num_bytes: int = 4, a_shape: tuple[int, ...] = (2, IN)) -> Any:
    """Return the header of a file with both tensors, one after the other."""
    a_end = math.prod(a_shape) * num_bytes
    b_end = a_end + OUT * 2 * num_bytes
    a_tensor = {"dtype": dtype, "shape": a_shape, "data_offsets": [0, a_end]}
    b_tensor = {"dtype": dtype, "shape": [OUT, 2], "data_offsets": [a_end, b_end]}
    return {A_NAME: a_tensor, B_NAME: b_tensor}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", UNREADABLE),
        ((1_000_001).to_bytes(8, "little") + b" " * 100, "has a header of more than 1000000 bytes"),
        (safetensors_file(header(), 79), UNREADABLE),
        (safetensors_file(header() | {B_NAME: header()[A_NAME]}, 48), UNREADABLE),
        (safetensors_file(header(a_shape=(0, 1 << 62, 1 << 62)), 32), UNREADABLE),
        (safetensors_file(header("I32"), 80), "A.weight as torch.int32; it must be floating-point"),
        (b" " * 10_001, "has 10001 bytes; at most 10000 are allowed"),
        (safetensors_file(header("F8_E5M2", 1, (2_500, 1)), 2_508), "weights of 10032 bytes in fl"),
    ],
    ids=range(8),
)
def test_malformed_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, pair(LAYER))
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)


def test_number_of_tensors_is_bounded(tmp_path: Path) -> None:
    limits = AdapterLimits(max_bytes=1_000_000)
    write(tmp_path, {str(index): torch.ones(1) for index in range(2_049)})
    with pytest.raises(ArtifactError, match="has 2049 tensors; 2048 are allowed"):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", limits)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', which is not supported"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is True, which is not supported; it must be null"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": "two"}, "r is 'two'"),
        ({"r": 17}, "a rank is 17; at most 16 is supported"),
        ({"r": 0}, "r is 0, "),
        ({"r": True}, "r is True, "),
        ({"rank_pattern": {"k_proj": 17}}, "a rank is 17; at most 16"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]"),
        ({"alpha_pattern": {"(?=q)": 1}}, r"alpha_pattern: '\(\?=q\)' is not a pattern of RE2"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern.q_proj is '8'"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan, "),
        ({"lora_alpha": -(10**7)}, "lora_alpha is -1000"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"use_rslora": "false"}, "use_rslora is 'false'"),
        ({"modules_to_save": ["norm"] * 101}, "modules_to_save is .* at most 100 items"),
        ({"target_parameters": nested(900)}, r"target_parameters is \[{7}\.\.\.\]"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_unsupported_option_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    with pytest.raises(ArtifactError, match=message):
        PeftConfig.read(tmp_path, LIMITS.max_rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["lm_head.base_layer", "language_model.lm_head.base_layer", "lm_head", EMBEDDINGS]
)
def test_copies_of_head_and_embeddings_change_nothing(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    own = torch.arange(OUT * IN).view(OUT, IN).to(dtype)
    tensors = pair("lm_head") | {f"base_model.model.{name}.weight": own}
    assert converted(tmp_path, tensors).keys() == {"lm_head.down", "lm_head.up"}
    tensors[f"base_model.model.{name}.weight"] = own + 1
    with pytest.raises(ArtifactError, match=f"changes {name}.weight, which is not supported; all"):
        converted(tmp_path, tensors)


@pytest.mark.parametrize(("num_missing", "num_rows"), [(0, 10), (1, 11), (63, 73), (64, 10)])
def test_a_head_is_padded_to_the_rows_of_the_export(num_missing: int, num_rows: int) -> None:
    base = BaseWeights(Path("none"), {"lm_head.weight": (10 + num_missing, IN)}, "none")
    up = torch.arange(20.0).view(10, 2)
    padded = base.padded(up)
    assert len(padded) == num_rows
    assert torch.equal(padded[:10], up)
    assert (padded[10:] == up.mean(0)).all()


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
REFUSED = ("(?=q)q_proj", "(?<!q)_proj", r"(.)\1", "q++", "(", "[q", "q_proj)", "*", "q{2001}")


@pytest.mark.parametrize("pattern", ["", *PATTERNS.split()])
def test_a_pattern_matches_as_in_peft(pattern: str) -> None:
    patterns = compile_patterns("rank_pattern", {pattern: 4})
    values_by_name = {name: value_of(patterns, name, 2) for name in NAMES}
    assert values_by_name == {
        name: 4 if get_pattern_key([pattern], name) == pattern else 2 for name in NAMES
    }


def test_the_first_pattern_that_matches_counts() -> None:
    values = {"k_proj": 1.0, ".*proj": 2.0, "q_proj": 3.0, "fc1": 4.0}
    patterns = compile_patterns("alpha_pattern", values)
    expected = {name: values.get(get_pattern_key(list(values), name), 9.0) for name in NAMES}
    assert {name: value_of(patterns, name, 9.0) for name in NAMES} == expected
    assert set(expected.values()) == {1.0, 2.0, 4.0, 9.0}


@pytest.mark.parametrize(
    "pattern", [r"(\w+\.?)+x", "(.*)*x", "(.|.|.)*x", "(a|a)*" * 80 + "x", ".*" * 240 + "x"]
)
def test_no_pattern_backtracks(pattern: str) -> None:
    patterns = compile_patterns("rank_pattern", {pattern: 4})
    assert {value_of(patterns, name, 2) for name in (*NAMES, "a" * 300)} == {2}


@pytest.mark.parametrize("pattern", REFUSED)
def test_pattern_that_re2_lacks_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern of RE2"):
        compile_patterns("rank_pattern", {"q_proj": 1, pattern: 4})


@pytest.mark.parametrize(
    ("number", "characters"), [(MAX_PATTERNS + 1, 4), (MAX_ALL_CHARS // 400 + 1, 400)]
)
def test_number_and_size_of_patterns_are_bounded(number: int, characters: int) -> None:
    values = {f"{index:0{characters}}": 4.0 for index in range(number)}
    message = f"rank_pattern has {number} patterns of {number * characters} characters"
    with pytest.raises(ValueError, match=message):
        compile_patterns("rank_pattern", values)
    compile_patterns("rank_pattern", dict(list(values.items())[1:]))
