import importlib.resources
import subprocess
import sys
from pathlib import Path

from tests.support.export_cli import ROOT


def test_the_committed_code_is_what_the_proto_generates(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    includes = ["-I.", f"-I{importlib.resources.files('grpc_tools') / '_proto'}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *outputs, "service/proto/vision.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    for name in ("vision_pb2.py", "vision_pb2.pyi", "vision_pb2_grpc.py"):
        generated = (tmp_path / "service" / "proto" / name).read_text()
        assert (ROOT / "service" / "proto" / name).read_text() == generated, f"{name} is stale: make proto"
