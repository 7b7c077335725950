import importlib.resources
import subprocess
import sys
from pathlib import Path

from tests.support.export_cli import ROOT

PROTOS = sorted((ROOT / "service/rpc/proto").glob("*.proto"))


def test_generated_code_is_current(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    includes = ["-I.", f"-I{importlib.resources.files('grpc_tools') / '_proto'}"]
    protos = [str(proto.relative_to(ROOT)) for proto in PROTOS]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *includes, *outputs, *protos],
        cwd=ROOT,
        check=True,
    )
    generated = {path.name: path.read_text() for path in (tmp_path / "service/rpc/proto").iterdir()}
    assert len(generated) == 3 * len(PROTOS)
    for name, code in generated.items():
        assert (ROOT / "service/rpc/proto" / name).read_text() == code, (
            f"{name} is stale: make proto"
        )
