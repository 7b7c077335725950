"""The environment of the fake CUDA runtime: `python -m tests.gpu.fake_cuda.environment` makes it.

With `tests.gpu.test_counts:figures florence-2-mini` it also runs that scenario.

torch and ONNX Runtime for CUDA are installed without NVIDIA's libraries. One library replaces them
under all of their names: it has the functions of the C sources here, and for all others one that
returns 0. It has structure, no numbers and no speed.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import venv
from mmap import ACCESS_READ, mmap
from pathlib import Path

_SOURCES = Path(__file__).parent
_ROOT = _SOURCES.parents[2]
_FOLDER = _ROOT / "build/fake-cuda"
PYTHON = _FOLDER / "bin/python"
_SITE = _FOLDER / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
_INSTALLED = _FOLDER / "installed"  # the packages that are
_LIBRARIES = _SITE / "nvidia/cu13/lib"  # where torch's libraries look first
_LIBRARY = _LIBRARIES / "libfake_cuda.so"
_HEADERS = ("nvidia-cuda-runtime==13.*", "nvidia-cuda-crt==13.*")  # read by runtime.c
_DRIVER = "libcuda.so.1"
_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nccl|nvrtc|nvshmem)[^\]]*)\]")
_BY_NAME = re.compile(rb"\x00((?:cudnn|cufft)[A-Z]\w+)(?=\x00)")
_SYMBOL = re.compile(r" U ((?:__cuda|cu[a-zA-Z]|nccl|nvrtc|nvshmem|nvJit)\w*)@*(\S*)")

VARIABLES = {
    "FAKE_CUDA": "1",
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'client'}",
    "LD_LIBRARY_PATH": str(_LIBRARIES),  # the driver is looked up there
    "CUDA_MODULE_LOADING": "LAZY",
}


def _packages() -> list[str]:
    lines = (_ROOT / "requirements-gpu.txt").read_text().splitlines()
    packages = [re.sub(r"\[.*\]", "", line) for line in lines if line and not line.startswith("#")]
    return [*packages, *_HEADERS]


def is_installed() -> bool:
    return _INSTALLED.exists() and _INSTALLED.read_text() == str(_packages())


def can_compile() -> bool:
    return all(map(shutil.which, ("cc", "nm", "readelf")))


def make() -> None:
    """Install missing packages, and compile the libraries after a change of their sources."""
    _FOLDER.parent.mkdir(exist_ok=True)
    with _FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several files of tests may begin together
        if not is_installed():
            _install()
        changed_s = max(path.stat().st_mtime for path in _SOURCES.glob("*.*"))
        if not _LIBRARY.exists() or _LIBRARY.stat().st_mtime < changed_s:
            _compile()


def _install() -> None:
    packages = _packages()
    venv.create(_FOLDER, clear=True, with_pip=False)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-cache", "--no-deps"]
    subprocess.run([*install, "--python", str(PYTHON), *packages], check=True)
    # after the environment's own packages: torch and onnxruntime are found there first
    others = next(path for path in sys.path if path.endswith("site-packages"))
    (_SITE / "others.pth").write_text(f"{others}\n")
    _INSTALLED.write_text(str(packages))


def _compile() -> None:
    """Compile the libraries: one file under all names, with the versions of the symbols."""
    clients = [*_SITE.glob("torch/lib/*.so*"), *_SITE.glob("onnxruntime/capi/*.so*")]
    # the symbols of NVIDIA's libraries that the clients look up: by name, and with a version
    provider = _SITE / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    with provider.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        symbols = {name.decode(): "" for name in _BY_NAME.findall(content)}
    symbols |= dict(_SYMBOL.findall(_read("nm", "-D", "--undefined-only", *clients)))
    sources = [_SOURCES / "runtime.c", _SOURCES / "libraries.c"]
    stubs = _FOLDER / "stubs.c"
    # weak: those of the sources replace them
    lines = [f"__attribute__((weak)) int {name}() {{ return 0; }}\n" for name in sorted(symbols)]
    stubs.write_text("".join(lines))
    nodes = ""
    for version in sorted(set(symbols.values()) - {""}):
        names = "".join(f" {name};" for name in sorted(symbols) if symbols[name] == version)
        nodes += f"{version} {{ global:{names} }};\n"
    script = _FOLDER / "versions.map"
    script.write_text(nodes)
    _LIBRARIES.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-pthread", "-o", str(_LIBRARY)]
    include = f"-I{_SITE / 'nvidia/cu13/include'}"
    options = [include, f"-Wl,--version-script={script}", "-Wl,-soname,libfake_cuda.so", "-ldl"]
    subprocess.run([*command, *map(str, [*sources, stubs]), *options], check=True)
    for name in {_DRIVER, *_NEEDED.findall(_read("readelf", "-d", *clients))}:
        link = _LIBRARIES / name
        link.unlink(missing_ok=True)
        link.symlink_to(_LIBRARY.name)


def _read(*command: object) -> str:
    return subprocess.check_output([*map(str, command)], text=True)


if __name__ == "__main__":
    make()
    if arguments := sys.argv[1:]:
        os.execve(PYTHON, [str(PYTHON), "-m", "tests.gpu.card", *arguments], os.environ | VARIABLES)
