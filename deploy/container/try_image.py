"""Builds a base and the image on it, runs it, sends requests over REST and gRPC, stops it, and
prints times and sizes.

    make export && .venv/bin/pip install ./client && sudo .venv/bin/python -m
    deploy.container.try_image

For where no daemon of Docker is: Debian's buildah builds and runs (isolation chroot, storage vfs),
debootstrap makes the base: apt-get install buildah netavark debootstrap. It takes some five
minutes, and 10 GB of --folder, which are free again at the end. VARIANT=gpu in its environment
tries the other image, without a card, and takes 35 GB.

    --suite trixie --copy-python   Debian's suite of the base, and the Python that runs this in the
                                   place of Debian's
    --platform linux/arm64         by QEMU on x86-64: apt-get install qemu-user-static. The base is
                                   unpacked, not configured
    --volume HOST:CONTAINER:ro     for the build, as for a pip.conf; may be given several times
    --fake-cuda FOLDER             afterwards run it on the fake card, which FOLDER has in the place
                                   of the packages of NVIDIA (tests/support/fake_cuda)
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from diptych_client import Answer, Client, TextResult

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "service" / "web" / "samples" / "scene.png"
SOURCE = "/opt/diptych/src"
NVIDIA = "/opt/diptych/venv/lib/python{}.{}/site-packages/nvidia".format(*sys.version_info[:2])
USER = 10001  # the Containerfile's
BASE = "localhost/diptych-base"
IMAGE = "diptych"
DOCTOR = ("python", "-m", "export", "doctor")
# Graviton 2's; with all extensions QEMU takes twice the time.
EMULATED_PROCESSOR = ("--env", "QEMU_CPU=neoverse-n1")
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=90000:90000")
# Emulated processors are slow.
READY_S = 1800
REQUEST_S = 600
STOP_S = 120
# Parts of Python's own library.
NOT_COPIED = ("site-packages", "test", "__pycache__", "idlelib", "tkinter", "turtledemo")
# What the copied Python is linked with.
LIBRARIES = (
    "libssl3t64,libffi8,libsqlite3-0,libexpat1,libbz2-1.0,liblzma5,zlib1g,libreadline8t64,libuuid1"
)

# What buildah mounts over must be there before.
READ_ONLY = """
touch "$1/etc/hosts" "$1/etc/resolv.conf" "$1/run/.containerenv"
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
if touch "$1/opt/file"; then exit 1; fi
shift
exec "$@"
"""
# buildah 1.39 fails at its end, as it cannot remove what it mounted over: its own status says
# nothing of the command's.
WITH_STATUS = ("sh", "-c", '"$@"; echo "status $?"', "sh")


@dataclass(frozen=True, slots=True)
class Running:
    """A container that is ready."""

    url: str
    grpc_url: str
    process: subprocess.Popen[bytes]
    ready_s: float
    log: Path


def main() -> None:
    """Try the image; raise where something is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.container.try_image", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--copy-python", action="store_true")
    parser.add_argument("--platform")
    parser.add_argument("--volume", action="append", default=[])
    parser.add_argument("--fake-cuda", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diptych-image-", dir=options.folder) as folder:
        use_own_storage(Path(folder))
        make_base(Path(folder) / "base", options.suite, options.copy_python, options.platform)
        build(options.volume, options.platform)
        container = output("buildah", "from", *LIMITS, *of_platform(options.platform), IMAGE)
        log = Path(folder) / "service.log"
        processor = () if options.platform is None else EMULATED_PROCESSOR
        print(figures(sizes() | try_container(container, log, ["YK", "YK"], *processor)))
        if options.fake_cuda is not None:
            card = fake_card(options.fake_cuda)
            print(figures(try_container(container, log, ["", ""], *card)))


def use_own_storage(folder: Path) -> None:
    """Make buildah write below `folder` only, without a daemon and without overlays."""
    storage = folder / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/storage"\n'
    )
    os.environ |= {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}


def run(*command: str) -> None:
    """Run a command to its end; raise if it fails."""
    print("$", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def output(*command: str) -> str:
    """Return what a command prints; raise if it fails."""
    return subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def of_platform(platform: str | None) -> tuple[str, ...]:
    """Return buildah's options of a platform; None is this machine's."""
    return () if platform is None else ("--platform", platform)


def make_base(root: Path, suite: str, copies_python: bool, platform: str | None) -> None:
    """Make the base image: Debian with Python and nothing of its installation left."""
    python = LIBRARIES if copies_python else "python3,python3-venv"
    options = ["--variant=minbase", f"--include=ca-certificates,{python}"]
    if platform is not None:
        options += ["--foreign", f"--arch={platform.rpartition('/')[2]}"]
    run("debootstrap", *options, suite, str(root))
    if platform is not None:
        unpack(root)
    if copies_python:
        copy_python(root)
    for left in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
        left.unlink()
    container = output("buildah", "from", *of_platform(platform), "scratch")
    run("buildah", "add", "--quiet", container, str(root), "/")
    run("buildah", "commit", "--quiet", container, BASE)
    run("buildah", "rm", container)


def unpack(root: Path) -> None:
    """Unpack the packages of a foreign root in seconds; its second stage takes QEMU half an
    hour.
    """
    for package in root.glob("var/cache/apt/archives/*.deb"):
        subprocess.run(("dpkg-deb", "--extract", package, root), check=True)
    for name in ("passwd", "group"):
        shutil.copy(root / "usr" / "share" / "base-passwd" / f"{name}.master", root / "etc" / name)


def copy_python(root: Path) -> None:
    """Copy the Python that runs this to /usr/local, where the official images have theirs too."""
    source = Path(sys.base_prefix)
    target = root / "usr" / "local"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(
        source / "lib" / version,
        target / "lib" / version,
        ignore=shutil.ignore_patterns(*NOT_COPIED),
    )
    for library in source.glob("lib/libpython*.so*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    shutil.copy2(source / "bin" / version, target / "bin" / version)
    (target / "bin" / "python3").symlink_to(version)
    run("ldconfig", "-r", str(root))


def build(given_volumes: Sequence[str], platform: str | None) -> None:
    """Build the image as a user does, in the environment that runs this."""
    volumes = chain.from_iterable(("--volume", volume) for volume in given_volumes)
    options = " ".join((*LIMITS, "--build-arg", f"BASE_IMAGE={BASE}", *volumes))
    environment = ("-o", ".venv/installed-export", f"PY={sys.executable}")
    names = ["ENGINE=buildah", f"IMAGE={IMAGE}", f"BUILD_OPTIONS={options}"]
    if platform is not None:
        names.append(f"PLATFORM={platform}")
    run("make", "image", *environment, *names)


def try_container(
    container: str, log: Path, expected: Sequence[str], *options: str
) -> dict[str, str]:
    """Run the image, ask it, stop it; return what was measured."""
    with running(container, log, *options) as service:
        for url in (service.url, service.grpc_url):
            if (texts := answers(url)) != expected:
                raise RuntimeError(
                    f"{url} reads {texts}, not {expected}: {log.read_text()[-4000:]}"
                )
        memory = memory_mb()
        stopped_s = stop(service)
    return {
        "start to ready": f"{service.ready_s:.1f} s",
        "resident memory (PSS), all processes": f"{memory:.0f} MB",
        "SIGTERM to the end, status 0": f"{stopped_s:.1f} s",
    }


def fake_card(nvidia: Path) -> tuple[str, ...]:
    """Return the options of a run with a fake card, whose answers are empty."""
    libraries = f"LD_LIBRARY_PATH={NVIDIA}/cu13/lib"
    volume = f"{nvidia.resolve()}:{NVIDIA}:ro"
    return "--volume", volume, "--env", libraries, "--env", "FAKE_CUDA_MEMORY_MB=9000"


def sizes() -> dict[str, str]:
    """Return the sizes of the image and its base."""
    return {
        "image, uncompressed": f"{sum(layer_bytes(IMAGE)) / 1e9:.2f} GB",
        "of it the base": f"{sum(layer_bytes(BASE)) / 1e9:.2f} GB",
        "layers": f"{len(layer_bytes(IMAGE))}",
    }


@contextmanager
def running(container: str, log: Path, *options: str) -> Iterator[Running]:
    """Run the export's doctor, then the image's command on a read-only root, and its health check;
    yield when it is ready.
    """
    port = free_port()
    grpc_port = free_port()
    ports = ("--env", f"DIPTYCH_PORT={port}", "--env", f"DIPTYCH_GRPC_PORT={grpc_port}")
    # chroot's network is that of the host
    patient = ("--env", f"DIPTYCH_REQUEST_TIMEOUT_S={REQUEST_S}")
    local = ("--env", "DIPTYCH_HOST=127.0.0.1", *patient, *ports, *options)
    config = json.loads(output("buildah", "inspect", container))["Docker"]["config"]
    # makes the mount points, which a read-only root must have
    doctor = ("--volume", f"{ROOT}/export:{SOURCE}/export:ro", container, "--", *DOCTOR)
    run("buildah", "run", *local, *doctor)
    started_s = time.monotonic()
    with log.open("wb") as file:
        service = ["buildah", "run", *local, container, "--", *WITH_STATUS, *config["Entrypoint"]]
        command = on_read_only_root(container, service)
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        ready_s = time.monotonic() - started_s
        run("buildah", "run", *local, container, "--", *config["Healthcheck"]["Test"][1:])
        yield Running(url, f"grpc://127.0.0.1:{grpc_port}", process, ready_s, log)
    finally:
        for pid in processes():  # where something failed
            os.kill(pid, signal.SIGKILL)
        process.wait(STOP_S)


def on_read_only_root(container: str, command: Sequence[str]) -> list[str]:
    """Return `command` in a mount namespace in which the container's root cannot be written."""
    mounted = output("buildah", "mount", container)
    return ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", mounted, *command]


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when /readyz says so; raise if the container ends, or is not ready in time."""
    deadline_s = time.monotonic() + READY_S
    while not is_ready(url):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"not ready: {log.read_text()[-4000:]}")
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    """Return True if the service is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def answers(url: str) -> list[str]:
    """Send the README's scene to every model; return the texts of those that answer."""
    with Client(url, timeout_s=REQUEST_S) as client:
        compared = client.compare(SCENE, "ocr").answers
    texts = [
        each.result.text
        for each in compared
        if isinstance(each, Answer) and isinstance(each.result, TextResult)
    ]
    print(url, texts)
    return texts


def stop(service: Running) -> float:
    """Stop a service as an engine does; return the seconds that it took, and raise if its status
    is not 0.
    """
    started_s = time.monotonic()
    os.kill(supervisor(), signal.SIGTERM)
    service.process.wait(STOP_S)
    stopped_s = time.monotonic() - started_s
    if "\nstatus 0\n" not in (log := service.log.read_text()):
        raise RuntimeError(f"not stopped as it should be: {log[-4000:]}")
    return stopped_s


def processes() -> dict[int, str]:
    """Return the processes of the container with their commands: those of its user, but for
    buildah's own.
    """
    command = ["ps", "-ww", "-o", "pid=,args=", "-u", str(USER)]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    found = dict[int, str]()
    for line in listed.splitlines():
        pid, args = line.split(maxsplit=1)
        if not args.startswith("buildah"):
            found[int(pid)] = args
    return found


def supervisor() -> int:
    """Return the process that the image's command became, to which an engine sends STOPSIGNAL.

    It is the first: emulated, those that it starts have its arguments, too.
    """
    return min(pid for pid, args in processes().items() if "service.supervision.supervisor" in args)


def memory_mb() -> float:
    """Return the memory of all processes, of what they share to each its part."""
    total_kb = 0
    for pid in processes():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total_kb += int(rollup.partition("\nPss:")[2].split()[0])
    return total_kb / 1e3


def layer_bytes(image: str) -> list[int]:
    """Return the bytes of each layer of an image."""
    manifest = json.loads(
        json.loads(output("buildah", "inspect", "--type", "image", image))["Manifest"]
    )
    return [layer["size"] for layer in manifest["layers"]]


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def figures(measured: dict[str, str]) -> str:
    """Return the README's table."""
    return "\n".join(
        ("| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in measured.items()))
    )


if __name__ == "__main__":
    main()
