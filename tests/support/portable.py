"""The environment of programs that find nothing of Linux alone."""

from tests.support.export_cli import ROOT

WITHOUT_LINUX = {"PYTHONPATH": str(ROOT / "tests" / "support" / "without_linux")}
