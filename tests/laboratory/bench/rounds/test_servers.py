from laboratory.bench.rounds.servers import OURS_DEFAULT, servers_of
from tests.support.bench_rounds import model


def test_the_first_server_which_determines_the_plan_is_a_peer() -> None:
    servers = servers_of(model("florence-2-base-random"))
    assert servers[0].kind == "fastapi"
    assert OURS_DEFAULT in servers


def test_names_of_servers_are_unique() -> None:
    names = [server.name for server in servers_of(model("florence-2-mini"))]
    assert len(set(names)) == len(names)
