from pathlib import Path

from laboratory.bench.rounds.measurement import read_measurement, write_measurement
from laboratory.bench.rounds.servers import OURS_DEFAULT, servers_of
from tests.support.bench_rounds import PEER, measurement, model, one_round, sample


def test_a_written_measurement_is_read_unchanged(tmp_path: Path) -> None:
    written = measurement(
        "m",
        {"mixed": [one_round([sample(0.1), sample(0.2, text="é")]), one_round([], 2.0, True)]},
        PEER,
    )
    write_measurement(written, tmp_path / "new" / "m.json")
    assert read_measurement(tmp_path / "new" / "m.json") == written


def test_the_first_server_which_determines_the_plan_is_a_peer() -> None:
    servers = servers_of(model("florence-2-base-random"), is_quick=False)
    assert servers[0].kind == "fastapi"
    assert OURS_DEFAULT in servers


def test_names_of_servers_are_unique() -> None:
    names = [server.name for server in servers_of(model("florence-2-mini"), is_quick=False)]
    assert len(set(names)) == len(names)
