"""A run as Markdown: ratios with their targets, every server, the limit, and where the time goes."""

from collections.abc import Iterator

from loadtest.client import Round
from loadtest.limits import Share
from loadtest.markdown import milliseconds, percent, shown, table
from loadtest.measures import num_equal, num_short, numbers_of
from loadtest.run import Run, comparisons
from loadtest.stages import COLUMNS, profile_of
from loadtest.stands import Stand
from loadtest.targets import Comparison

_LETTERS = {"mixed": "a", "mixed_4": "a, 4 clients", "one_image": "b", "decode_heavy": "c", "single": "d"}
_TITLES = {
    "mixed": "(a) mixed",
    "one_image": "(b) one image",
    "decode_heavy": "(c) decode-heavy",
    "single": "(d) single",
}
_MEASURES = {
    "requests_per_s": ("requests/s", 1.0),
    "tokens_per_s": ("tokens/s", 1.0),
    "short_p95_s": ("p95 of short ones, ms", 1000.0),
    "p50_s": ("p50, ms", 1000.0),
}
_VERDICTS = {True: "met", False: "**missed**", None: ""}


def markdown(run: Run) -> str:
    """Return the whole report."""
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts.items())
    sections = [
        ("Ours ÷ best peer", ratio_table(run)),
        ("Every server", server_table(run)),
        ("Same answers", answers_table(run)),
        ("The limit", f"{rate_table(run)}\n\n{share_table(run)}\n\n{step_table(run)}"),
        ("Where the time of a request goes, mean ms", profile_table(run)),
        ("Not run, or cut", _cuts(run)),
    ]
    return f"# Bench\n\n{facts}\n" + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections)


def ratio_table(run: Run) -> str:
    """Return a row for every target and model."""
    header = ["workload", "model", "measure", "ours", "best peer", "peer", "ours ÷ peer", "target", ""]
    return table(header, map(_ratio_row, comparisons(run)))


def _ratio_row(comparison: Comparison) -> list[str]:
    target = comparison.target
    name, factor = _MEASURES[target.measure]
    values = (shown(comparison.our_value * factor), shown(comparison.peer_value * factor))
    verdict = _VERDICTS[comparison.is_met]
    row = [_TITLES[target.workload], comparison.model, name, *values, comparison.best_peer, f"{comparison.ratio:.2f}"]
    return [*row, target.bound_text, verdict]


def server_table(run: Run) -> str:
    """Return a row for every server and workload."""
    header = ["model", "server", "setting", "", "answered", "req/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms"]
    return table(header, (row for stand in run.stands for row in _server_rows(stand)))


def _server_rows(stand: Stand) -> Iterator[list[str]]:
    for workload, rounds in stand.rounds.items():
        numbers = numbers_of(rounds)
        answered = f"{numbers.num_answered} of {numbers.num_requests}"
        rates = [shown(numbers.requests_per_s), shown(numbers.tokens_per_s)]
        times = [
            milliseconds(value) for value in (numbers.p50_s, numbers.p95_s, numbers.p99_s, numbers.cpu_s_per_request)
        ]
        yield [stand.model, stand.server.name, stand.server.description, _LETTERS[workload], answered, *rates, *times]


def answers_table(run: Run) -> str:
    """Return how many answers of each peer are, character by character, ours; and how many lengths are not as asked."""
    header = ["model", "peer", "equal to ours", "not of the asked length, ours / peer"]
    rows = (_answers_row(ours, peer, run) for ours in run.ours() for peer in run.peers_of(ours.model))
    return table(header, rows)


def _answers_row(ours: Stand, peer: Stand, run: Run) -> list[str]:
    pairs = [num_equal(rounds, peer.rounds.get(workload, ())) for workload, rounds in ours.rounds.items()]
    equal = f"{sum(pair[0] for pair in pairs)} of {sum(pair[1] for pair in pairs)}"
    is_endless = any(model.id == ours.model and model.is_endless for model in run.models)
    lengths = f"{num_short(_all_rounds(ours))} / {num_short(_all_rounds(peer))}" if is_endless else ""
    return [f"{ours.model} ({ours.server.name})", peer.server.name, equal, lengths]


def _all_rounds(stand: Stand) -> list[Round]:
    return [one for rounds in stand.rounds.values() for one in rounds]


def rate_table(run: Run) -> str:
    """Return what the machine can."""
    header = ["cores", "float32 products, G/s", "int8 products, G/s", "memory, GB/s"]
    rates = ((rate.num_threads, rate.float32_per_s, rate.int8_per_s, rate.memory_bytes_per_s) for rate in run.rates)
    return table(header, ([str(cores), *(shown(value / 1e9) for value in values)] for cores, *values in rates))


def share_table(run: Run) -> str:
    """Return what share of that the service reaches with one request at a time."""
    header = ["model", "part", "", "G operations, or GB", "ms", "G/s", "of one core's limit", "of all cores'"]
    return table(header, map(_share_row, run.shares))


def _share_row(share: Share) -> list[str]:
    speed = [shown(share.work / 1e9), milliseconds(share.measured_s), shown(share.rate / 1e9)]
    return [share.model, share.part, share.precision, *speed, percent(share.one_core), percent(share.all_cores)]


def step_table(run: Run) -> str:
    """Return how much of a decode step is not the model."""
    header = ["model, one thread", "sequences", "step, ms", "in the model, ms", "outside it"]
    rows = (
        (step.model, str(step.num_sequences), *map(milliseconds, (step.step_s, step.model_s)), percent(step.overhead))
        for step in run.steps
    )
    return table(header, rows)


def profile_table(run: Run) -> str:
    """Return the stages of our service's requests by workload."""
    header = ["model", "", "requests", *COLUMNS, "all"]
    return table(header, (row for stand in run.ours() for row in _profile_rows(stand)))


def _profile_rows(stand: Stand) -> Iterator[list[str]]:
    name = stand.model if stand.server.name == "diptych" else f"{stand.model}, {stand.server.name}"
    for workload, rounds in stand.rounds.items():
        profile = profile_of([sample for one in rounds for sample in one.samples])
        means = [shown(profile.stages_ms[column]) for column in COLUMNS]
        yield [name, _LETTERS[workload], str(profile.num_requests), *means, shown(profile.latency_ms)]


def _cuts(run: Run) -> str:
    cut = [
        f"- {stand.model}, {stand.server.name}, {workload}: a round was cut at its time limit"
        for stand in run.stands
        for workload, rounds in stand.rounds.items()
        if any(one.is_cut for one in rounds)
    ]
    skipped = [f"- {one.model}, {one.server}: {one.reason}" for one in run.skipped]
    return "\n".join([*cut, *skipped]) or "Nothing."
