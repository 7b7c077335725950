"""Memory of a service's processes while a load test on the same host runs.

The amount is anonymous memory: pages of files that neighbours share come and go with these. Work in
progress raises single samples, a leak raises the lowest. The growth of a process is therefore the
lowest amount of the last third of its life minus that of the second; the first is its warm-up.
"""

import csv
import random
import time
from contextlib import suppress
from pathlib import Path

import psutil

_INTERVAL_S = 0.5
_MIN_SAMPLES = 6  # two of each third
_MIN_LIFE = 1 / 3  # of the run; a younger process still warms up


class MemoryWatch:
    """Samples the memory of a process and its descendants, and may kill runners among them."""

    def __init__(self, process_id: int, kill_every_s: float = 0) -> None:
        """Raise `psutil.NoSuchProcess` for an unknown process; 0 s means no kills."""
        self._root = psutil.Process(process_id)
        self._kill_every_s = kill_every_s
        self.samples: list[dict[str, float]] = []  # MB by process

    def run(self) -> None:
        """Sample for ever."""
        next_kill_s = time.monotonic() + self._kill_every_s
        while True:
            self.sample()
            if self._kill_every_s and time.monotonic() >= next_kill_s:
                self._kill_runner()
                next_kill_s += self._kill_every_s
            time.sleep(_INTERVAL_S)

    def sample(self) -> None:
        amounts = {}
        for name, process in self._running().items():
            with suppress(psutil.Error):  # it has ended
                memory = process.memory_info()
                amounts[name] = (memory.rss - memory.shared) / 1e6
        self.samples.append(amounts)

    def growths_mb(self) -> dict[str, float]:
        """Return the growth of each process that lived long enough."""
        growths = {}
        for name in self._names():
            life = [amounts[name] for amounts in self.samples if name in amounts]
            if len(life) >= max(_MIN_SAMPLES, _MIN_LIFE * len(self.samples)):
                third = len(life) // 3
                growths[name] = min(life[-third:]) - min(life[third:-third])
        return growths

    def write_csv(self, path: Path) -> None:
        """Write a row for each sample, a column for each process."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._names())
            writer.writeheader()
            writer.writerows(self.samples)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for amounts in self.samples for name in amounts))

    def _running(self) -> dict[str, psutil.Process]:
        processes = {}
        with suppress(psutil.Error):
            for process in [self._root, *self._root.children(recursive=True)]:
                words = " ".join(process.cmdline()).replace("\0", " ").split()
                part = process.name()
                for option in ("-m", "--service-name"):
                    if option in words:
                        part = words[words.index(option) + 1]
                processes[f"{part} {process.pid}"] = process
        return processes

    def _kill_runner(self) -> None:
        runners = [process for name, process in self._running().items() if "-runner" in name]
        if runners:
            random.choice(runners).kill()
