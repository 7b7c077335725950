"""The figures of a run, and its tables in Markdown: ours against the best peer, and every server.

Rates are medians of the rounds, percentiles are over all answers.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain

from laboratory.bench.load import SHORT_TOKENS, WORKLOADS, Round, WorkloadName
from laboratory.bench.servers import OURS, OURS_DEFAULT, Server
from loadtest.figures import milliseconds, percentile, shown, table

Rounds = Mapping[tuple[str, Server, WorkloadName], Sequence[Round]]  # by model


@dataclass(frozen=True, slots=True)
class Numbers:
    """Measures of a server under a workload."""

    requests_per_s: float
    tokens_per_s: float
    p50_s: float
    p95_s: float
    short_p95_s: float  # answers of `SHORT_TOKENS`; NaN without any
    cpu_s: float  # of a request, mean, server only


# compared measures of a workload, by their names; of times, less is better
_COMPARED: dict[WorkloadName, tuple[str, ...]] = {
    "mixed": ("requests_per_s",),
    "one_image": ("requests_per_s",),
    "decode_heavy": ("tokens_per_s", "short_p95_s"),
    "single": ("p50_s",),
}
_NAMES = {
    "requests_per_s": "requests/s",
    "tokens_per_s": "tokens/s",
    "p50_s": "p50, ms",
    "p95_s": "p95, ms",
    "short_p95_s": "p95 of short ones, ms",
    "cpu_s": "CPU, ms",
}
_RATES = ("requests_per_s", "tokens_per_s")


def numbers_of(rounds: Sequence[Round]) -> Numbers:
    """Return the measures of rounds with at least one answer."""
    samples = list(chain.from_iterable(one.samples for one in rounds))
    rates = []
    token_rates = []
    for one in rounds:
        rates.append(len(one.samples) / one.elapsed_s)
        num_tokens = sum(sample.num_tokens for sample in one.samples)
        token_rates.append(num_tokens / one.elapsed_s)
    latencies = [sample.latency_s for sample in samples]
    short = [sample.latency_s for sample in samples if sample.max_new_tokens == SHORT_TOKENS]
    return Numbers(
        requests_per_s=statistics.median(rates),
        tokens_per_s=statistics.median(token_rates),
        p50_s=percentile(latencies, 50),
        p95_s=percentile(latencies, 95),
        short_p95_s=percentile(short, 95),
        cpu_s=sum(one.cpu_s for one in rounds) / len(samples),
    )


def markdown(rounds: Rounds, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the report; docs/tables.py copies its sections by their titles."""
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    sections = {
        "Ours ÷ best peer": ratio_table(rounds),
        "Every server": server_table(rounds),
        "Not run, or cut": "\n".join(f"- {note}" for note in notes) or "Nothing.",
    }
    bodies = "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())
    return f"# Bench\n\n{lines}\n{bodies}"


def ratio_table(rounds: Rounds) -> str:
    """Return a row for each measure of a workload that ours and a peer ran."""
    rows = []
    for (model, server, workload), server_rounds in rounds.items():
        if server.module is not None:
            continue
        peers = {}
        for (other_model, peer, other_workload), peer_rounds in rounds.items():
            is_same = (other_model, other_workload) == (model, workload)
            if is_same and peer.module is not None:
                peers[peer.name] = numbers_of(peer_rounds)
        label = f"{model}, default precision" if server == OURS_DEFAULT else model
        ours = numbers_of(server_rounds)
        for measure in _COMPARED[workload] if peers else ():
            rows.append([WORKLOADS[workload], label, *_ratio_cells(measure, ours, peers)])
    rows.sort(key=lambda row: row[0])
    header = ["workload", "model", "measure", "ours", "best peer", "peer", "ours ÷ peer"]
    return table(header, rows)


def _ratio_cells(measure: str, ours: Numbers, peers: Mapping[str, Numbers]) -> list[str]:
    values = {name: float(getattr(numbers, measure)) for name, numbers in peers.items()}
    choose = max if measure in _RATES else min
    best = choose(values, key=lambda name: values[name])
    our_value = float(getattr(ours, measure))
    cells = [_cell(measure, our_value), _cell(measure, values[best])]
    return [_NAMES[measure], *cells, best, f"{our_value / values[best]:.2f}"]


def server_table(rounds: Rounds) -> str:
    """Return all measures of every server under each workload."""
    measures = [field.name for field in fields(Numbers)]
    header = ["model", "server", "setting", "workload", "rounds", "answers"]
    rows = []
    for (model, server, workload), server_rounds in rounds.items():
        numbers = numbers_of(server_rounds)
        num_answers = sum(len(one.samples) for one in server_rounds)
        row = [model, server.name, server.setting, WORKLOADS[workload], str(len(server_rounds))]
        cells = [_cell(measure, getattr(numbers, measure)) for measure in measures]
        rows.append([*row, str(num_answers), *cells])
    return table([*header, *(_NAMES[measure] for measure in measures)], rows)


def _cell(measure: str, value: float) -> str:
    return shown(value) if measure in _RATES else milliseconds(value)


def num_equal(rounds: Rounds, model: str) -> tuple[int, int]:
    """Return the numbers of peers' answers that equal ours, and of requests that both answered.

    Servers of one model get the same requests in the same round of a workload.
    """
    num_same = 0
    num_both = 0
    for (other, peer, workload), peer_rounds in rounds.items():
        our_rounds = rounds.get((model, OURS, workload), ())
        if other != model or peer.module is None:
            continue
        for ours, theirs in zip(our_rounds, peer_rounds, strict=False):
            if ours.is_cut or theirs.is_cut:
                continue
            for one, same in zip(ours.samples, theirs.samples, strict=True):
                num_both += 1
                num_same += one.text == same.text
    return num_same, num_both
