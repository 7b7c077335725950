"""The environment of the fake card: `python -m tests.system.fake_cuda.environment` makes it.

`python -m tests.system.fake_cuda.environment figures florence-2-mini` runs a scenario there.

torch and ONNX Runtime for CUDA are installed without the packages that they depend on: those of
NVIDIA are replaced by one library under all of their names, and the others are read from this
environment. The library has all symbols that the two look up: those of the C sources here, and for
the rest a function that returns 0. It proves structure, no numbers and no speed: captures,
launches, copies, waits, allocations, recovery.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from mmap import ACCESS_READ, mmap
from pathlib import Path

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[2]
FOLDER = ROOT / "build/fake-cuda"
PYTHON = FOLDER / "bin/python"
SITE = FOLDER / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
_INSTALLED = FOLDER / "installed"  # the packages that are
LIBRARIES = SITE / "nvidia/cu13/lib"  # where torch's libraries look first
_HEADERS = ("nvidia-cuda-runtime==13.*", "nvidia-cuda-crt==13.*")  # read by runtime.c
_DRIVER = "libcuda.so.1"
_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nccl|nvrtc|nvshmem)[^\]]*)\]")
_DEFINED = re.compile(r"^(?:API )?[\w *]*?\b((?:__)?cu\w+)\(", re.MULTILINE)
_BY_MACRO = re.compile(r"^(?:LAUNCHES|CREATES)\((\w+)\)", re.MULTILINE)
_BY_NAME = re.compile(rb"\x00((?:cudnn|cufft)[A-Z]\w+)(?=\x00)")
_SYMBOL = re.compile(r" U ((?:__cuda|cu[a-zA-Z]|nccl|nvrtc|nvshmem|nvJit)\w*)@*(\S*)")


def variables() -> dict[str, str]:
    return {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        "LD_LIBRARY_PATH": str(LIBRARIES),  # the driver is looked up there
        "CUDA_MODULE_LOADING": "LAZY",
    }


def _packages() -> list[str]:
    lines = (ROOT / "requirements-gpu.txt").read_text().splitlines()
    packages = [re.sub(r"\[.*\]", "", line) for line in lines if line and not line.startswith("#")]
    return [*packages, *_HEADERS]


def is_installed() -> bool:
    return _INSTALLED.exists() and _INSTALLED.read_text() == str(_packages())


def can_compile() -> bool:
    return all(map(shutil.which, ("cc", "nm", "readelf")))


def make() -> None:
    """Install missing packages and compile the libraries."""
    if not is_installed():
        packages = _packages()
        venv.create(FOLDER, clear=True, with_pip=False)
        install = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-cache",
            "--no-deps",
        ]
        subprocess.run([*install, "--python", str(PYTHON), *packages], check=True)
        # after the environment's own packages: torch and onnxruntime are found there first
        others = next(path for path in sys.path if path.endswith("site-packages"))
        (SITE / "others.pth").write_text(f"{others}\n")
        _INSTALLED.write_text(str(packages))
    _compile()


def _compile() -> None:
    """Compile the libraries: one file under all names, with the versions of the symbols."""
    clients = [*SITE.glob("torch/lib/*.so*"), *SITE.glob("onnxruntime/capi/*.so*")]
    # the symbols of NVIDIA's libraries that the clients look up: by name, and with a version
    provider = SITE / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    with provider.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        symbols = {name.decode(): "" for name in _BY_NAME.findall(content)}
    symbols |= dict(_SYMBOL.findall(_read("nm", "-D", "--undefined-only", *clients)))
    sources = [SOURCES / "runtime.c", SOURCES / "libraries.c"]
    text = "".join(source.read_text() for source in sources)
    defined = {*_DEFINED.findall(text), *_BY_MACRO.findall(text)}
    stubs = FOLDER / "stubs.c"
    lines = [f"int {name}() {{ return 0; }}\n" for name in sorted(symbols.keys() - defined)]
    stubs.write_text("".join(lines))
    nodes = ""
    for version in sorted(set(symbols.values()) - {""}):
        names = "".join(f" {name};" for name in sorted(symbols) if symbols[name] == version)
        nodes += f"{version} {{ global:{names} }};\n"
    script = FOLDER / "versions.map"
    script.write_text(nodes)
    LIBRARIES.mkdir(parents=True, exist_ok=True)
    library = LIBRARIES / "libfake_cuda.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-pthread", "-o", str(library)]
    include = f"-I{SITE / 'nvidia/cu13/include'}"
    options = [include, f"-Wl,--version-script={script}", "-Wl,-soname,libfake_cuda.so", "-ldl"]
    subprocess.run([*command, *map(str, [*sources, stubs]), *options], check=True)
    for name in {_DRIVER, *_NEEDED.findall(_read("readelf", "-d", *clients))}:
        link = LIBRARIES / name
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)


def _read(*command: object) -> str:
    return subprocess.check_output([*map(str, command)], text=True)


if __name__ == "__main__":
    make()
    if arguments := sys.argv[1:]:
        command = [str(PYTHON), "-m", "tests.system.fake_cuda.scenarios", *arguments]
        os.execve(PYTHON, command, os.environ | variables())
