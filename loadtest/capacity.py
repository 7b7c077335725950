"""How many processes some images a second take: `python -m loadtest.capacity`, the tables of docs/scaling.md.

Costs come from loadtest/results/bench.md, the report of the last `make bench`. An image is one request about an image
of its own, of the bench's mixed workload (a). What is no measurement is a constant here, with its source.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.markdown import milliseconds, shown, table

_REPORT = Path(__file__).with_name("results") / "bench.md"

RATES = (10, 1_000, 100_000)  # images a second
UTILISATION = 0.7  # of a process at most, a choice: nearer to 1, waiting grows faster than the load
IMAGE_BYTES = 100_000  # of a file that a client sends, a choice: put your own mean here
CACHED_S = 60  # that the vision cache is to keep an image's features, a choice
# Pss of the processes (/proc/PID/smaps_rollup) after twelve answers of the embedded models; their weights are in it.
GATEWAY_GB, ENCODER_GB, DECODER_GB = 0.114, 0.115, 0.291
# NVIDIA's data sheet of the H100 SXM: float16 operations a second, dense, and bytes of memory a second.
H100_OPERATIONS, H100_BYTES = 989e12, 3.35e12
H100_SLOTS = 256  # the largest DIPTYCH_DECODER_MAX_BATCH_SIZE
_FEATURE_BYTES = 4  # float32 (runners/encoder_service.py)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the bench and how the report calls it."""

    id: str
    server: str
    decode_heavy: str  # the model of workload (c)
    precision: str
    num_threads: int  # cores of an encoder, and of a decoder: runners/artifacts/devices.py, on the bench's two cores
    image_side_px: int
    num_image_tokens: int
    hidden_size: int
    encoder_gb: float  # weights that come to the measured process (docs/operations.md)
    decoder_gb: float

    @property
    def pixels_bytes(self) -> int:
        """Bytes of a resized image, uint8."""
        return 3 * self.image_side_px**2

    @property
    def features_bytes(self) -> int:
        """Bytes of an image's features."""
        return self.num_image_tokens * self.hidden_size * _FEATURE_BYTES


MODELS = (
    Model("florence-2-mini", "diptych", "florence-2-mini-endless", "float32", 1, 192, 145, 128, 0, 0),
    Model("paligemma-mini", "diptych", "paligemma-mini-endless", "float32", 1, 192, 144, 128, 0, 0),
    Model("florence-2-base-random", "diptych default", "florence-2-base-random", "int8", 2, 768, 577, 768, 0.11, 0.30),
)


class Report:
    """The tables of a bench report."""

    def __init__(self, text: str) -> None:
        self._rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]

    def row(self, *cells: str, width: int) -> list[str]:
        """Return the one row of `width` cells that begins with `cells`; "*" is any."""
        wanted = [each for each in self._rows if len(each) == width and _begins(each, cells)]
        if len(wanted) != 1:
            raise ValueError(f"{_REPORT.name} has {len(wanted)} rows {' | '.join(cells)}, not one")
        return wanted[0]


def _begins(row: Sequence[str], cells: Sequence[str]) -> bool:
    return all(wanted in ("*", cell) for wanted, cell in zip(cells, row, strict=False))


@dataclass(frozen=True, slots=True)
class Cost:
    """What an image costs each part, in seconds of one core, and what the whole was measured to cost."""

    model: Model
    gateway_s: float
    encoder_s: float
    prefill_s: float
    token_s: float
    num_tokens: float  # of a mean answer
    measured_s: float

    @classmethod
    def of(cls, model: Model, report: Report) -> "Cost":
        """Read a model's measurements.

        The gateway and a prefill are those of a client alone (d). A token is what is left of an answer of (c) without
        its prefill, so with the batches of that workload.
        """
        name = model.id if model.server == "diptych" else f"{model.id}, {model.server}"
        _, _, _, preprocess, _, _, prefill, _, postprocess, between, http, _ = report.row(name, "d", width=12)
        mixed = report.row(model.id, model.server, "*", "a", width=11)
        heavy = report.row(model.decode_heavy, model.server, "*", "c", width=11)
        encoder = report.row(model.id, "encoder", model.precision, width=8)
        prefill_s = float(prefill) / 1000
        num_heavy_tokens = float(heavy[6]) / float(heavy[5])
        return cls(
            model,
            sum(map(float, (preprocess, postprocess, between, http))) / 1000,
            float(encoder[4]) / 1000 * model.num_threads,
            prefill_s * model.num_threads,
            (1 / float(heavy[5]) - prefill_s) / num_heavy_tokens * model.num_threads,
            float(mixed[6]) / float(mixed[5]),
            float(mixed[10]) / 1000,
        )

    @property
    def decoder_s(self) -> float:
        """Of a mean answer."""
        return self.prefill_s + self.num_tokens * self.token_s

    @property
    def total_s(self) -> float:
        """Of all parts."""
        return self.gateway_s + self.encoder_s + self.decoder_s


@dataclass(frozen=True, slots=True)
class Fleet:
    """The processes for a rate of images, all different."""

    cost: Cost
    rate: int

    @property
    def num_gateways(self) -> int:
        """Processes of one core."""
        return math.ceil(self.rate * self.cost.gateway_s / UTILISATION)

    @property
    def num_encoders(self) -> int:
        """Processes of the model's threads."""
        return math.ceil(self.rate * self.cost.encoder_s / self.cost.model.num_threads / UTILISATION)

    @property
    def num_decoders(self) -> int:
        """Processes of the model's threads."""
        return math.ceil(self.rate * self.cost.decoder_s / self.cost.model.num_threads / UTILISATION)

    @property
    def num_cores(self) -> int:
        """Of all processes."""
        return self.num_gateways + (self.num_encoders + self.num_decoders) * self.cost.model.num_threads

    @property
    def memory_gb(self) -> float:
        """Of all processes with their weights, without cache and slots."""
        encoders_gb = self.num_encoders * (ENCODER_GB + self.cost.model.encoder_gb)
        return (
            self.num_gateways * GATEWAY_GB + encoders_gb + self.num_decoders * (DECODER_GB + self.cost.model.decoder_gb)
        )

    @property
    def cache_gb(self) -> float:
        """Of the features of `CACHED_S` seconds."""
        return self.rate * CACHED_S * self.cost.model.features_bytes / 1e9

    @property
    def clients_gbit(self) -> float:
        """Gbit a second from clients to gateways; answers are a hundredth of it."""
        return self.rate * IMAGE_BYTES * 8 / 1e9

    @property
    def apart_gbit(self) -> float:
        """Gbit a second between hosts if every part has its own: pixels out, features back, features out."""
        return self.rate * (self.cost.model.pixels_bytes + 2 * self.cost.model.features_bytes) * 8 / 1e9


def capacity_tables(report: str) -> str:
    """Return all tables in Markdown, each under its heading."""
    costs = [Cost.of(model, Report(report)) for model in MODELS]
    fleets = [Fleet(cost, rate) for cost in costs for rate in RATES]
    operations = float(Report(report).row(MODELS[-1].id, "encoder", "int8", width=8)[3]) * 1e9
    return "\n\n".join([_costs(costs), _processes(fleets), _network(fleets), _cards(costs[-1], operations)])


def _costs(costs: Sequence[Cost]) -> str:
    head = [
        "model, core-ms",
        "gateway",
        "encoder",
        "prefill",
        "a token",
        "tokens",
        "decoder",
        "together",
        "measured, all",
    ]
    return table(head, (_cost_row(cost) for cost in costs))


def _cost_row(cost: Cost) -> list[str]:
    parts = (cost.gateway_s, cost.encoder_s, cost.prefill_s, cost.token_s)
    sums = (cost.decoder_s, cost.total_s, cost.measured_s)
    return [cost.model.id, *map(milliseconds, parts), shown(cost.num_tokens), *map(milliseconds, sums)]


def _processes(fleets: Sequence[Fleet]) -> str:
    head = ["model", "images/s", "gateways", "encoders", "decoders", "cores each", "cores", "memory, GB"]
    return table(head, (_process_row(fleet) for fleet in fleets))


def _process_row(fleet: Fleet) -> list[str]:
    counts = (fleet.num_gateways, fleet.num_encoders, fleet.num_decoders)
    threads = f"1, {fleet.cost.model.num_threads}, {fleet.cost.model.num_threads}"
    cells = [*(f"{count:,}" for count in counts), threads, f"{fleet.num_cores:,}", f"{fleet.memory_gb:,.1f}"]
    return [fleet.cost.model.id, f"{fleet.rate:,}", *cells]


def _network(fleets: Sequence[Fleet]) -> str:
    head = ["model", "images/s", "clients, Gbit/s", "parts on hosts of their own, Gbit/s", f"cache of {CACHED_S} s, GB"]
    rows = ([f.clients_gbit, f.apart_gbit, f.cache_gb] for f in fleets)
    named = zip(fleets, rows, strict=True)
    return table(head, ([f.cost.model.id, f"{f.rate:,}", *(f"{value:,.2f}" for value in row)] for f, row in named))


def _cards(cost: Cost, operations: float) -> str:
    """Return the fewest cards that could do it, which is no measurement."""
    decoder_bytes = cost.model.decoder_gb * 1e9
    rows = []
    for rate in RATES:
        encoding = rate * operations / H100_OPERATIONS
        steps_per_s = rate * cost.num_tokens / H100_SLOTS
        rows.append([f"{rate:,}", shown(encoding), shown(steps_per_s * decoder_bytes / H100_BYTES)])
    return table([f"{cost.model.id}, images/s", "H100 for encoding, at least", "for decode steps, at least"], rows)


def main() -> int:
    """Print the tables; return the exit status."""
    print(capacity_tables(_REPORT.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
