"""The memory that loading a decoder takes, measured in a separate process, and joined layers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from laboratory.bench.random_weights import florence2, write_random_checkpoint
from runners.models.weights import DecoderWeights
from tests.support.export_cli import ROOT
from wire.artifacts.manifest import DECODER_FILE, Precision

# Relative to the weights. The excess: the mapped pages of the tensor being read, the holes that
# packing leaves in the heap (up to 90 MB here), and the interpreter's own objects.
MARGIN = 1.25

LOAD = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from runners.models.florence2 import Florence2Decoder
from runners.models.weights import DecoderWeights

# Without the code of libraries: a call maps pages of it, or megabytes if they were just installed.
def peak_bytes():
    rows = dict(row.split(":") for row in Path("/proc/self/status").read_text().splitlines())
    code, is_library = 0, False
    for name, *values in map(str.split, Path("/proc/self/smaps").read_text().splitlines()):
        is_library = ".so" in values[-1] if not name.endswith(":") else is_library
        code += int(values[0]) if name == "Rss:" and is_library else 0
    # getrusage would include the parent's peak.
    return (int(rows["VmHWM"].removesuffix("kB")) - code) * 1024

folder, precision = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
before = peak_bytes()
weights = DecoderWeights.open(folder / "decoder.safetensors", precision, "cpu")
config = json.loads((folder / "config.json").read_text())
tokenizer, rules = SimpleNamespace(bare_ids=dict), SimpleNamespace(decoder_start_token_id=2)
parts = {"tokenizer": tokenizer, "rules": rules, "constraints": None, "adapters": None}
model = Florence2Decoder(SimpleNamespace(config=config, weights=weights, **parts))
print(peak_bytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in the widths of Florence-2-large, 600 MB in float16, and its decoder's
    weights beside it.
    """
    folder = tmp_path_factory.mktemp("large")
    write_random_checkpoint(florence2(1024, 256, 12, 4096), folder, max_layers=2)
    write_decoder_weights(CheckpointTensors.open(folder), folder / DECODER_FILE)
    return folder


def num_numbers(file: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(file).values())


def peak_bytes(folder: Path, precision: str) -> int:
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(folder), precision]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return int(run.stdout.split()[-1])


@pytest.mark.parametrize(
    ("precision", "num_bytes"),
    [
        ("float32", 4),
        pytest.param("bfloat16", 2, marks=pytest.mark.long),
        pytest.param("float16", 2, marks=pytest.mark.long),
    ],
)
def test_loading_a_decoder_takes_its_size_once(large: Path, precision: str, num_bytes: int) -> None:
    size = num_bytes * num_numbers(large / DECODER_FILE)
    assert size <= peak_bytes(large, precision) <= MARGIN * size


def test_loading_a_decoder_at_int8_never_holds_it_in_float32(large: Path) -> None:
    size = 4 * num_numbers(large / DECODER_FILE)
    embeddings = 4 * load_file(large / DECODER_FILE)["model.language_model.shared.weight"].numel()
    # the embeddings, half of the weights, stay float32
    assert embeddings <= peak_bytes(large, "int8") <= 0.95 * size


@pytest.mark.parametrize("precision", ["float32", "float16"])  # packed, and not
def test_layers_of_one_input_are_joined_and_a_separate_output_head_is_used(
    tmp_path: Path, precision: Precision
) -> None:
    values = {
        "a.weight": torch.eye(2),
        "b.weight": torch.full((1, 2), 3.0),
        "embed.weight": torch.zeros(4, 2),
    }
    tensors = {f"model.language_model.{name}": tensor.half() for name, tensor in values.items()}
    save_file(tensors, tmp_path / "tied.safetensors")
    save_file(tensors | {"lm_head.weight": torch.ones(4, 2)}, tmp_path / "untied.safetensors")
    tied, untied = (
        DecoderWeights.open(tmp_path / f"{name}.safetensors", precision, "cpu")
        for name in ("tied", "untied")
    )
    states = torch.tensor([[1.0, 2.0]], dtype=getattr(torch, precision))
    assert tied.linear("a", "b")(states).tolist() == [[1.0, 2.0, 9.0]]
    assert tied.output_head(tied.tensor("embed.weight"))(states).tolist() == [[0.0] * 4]
    assert untied.output_head(untied.tensor("embed.weight"))(states).tolist() == [[3.0] * 4]
