from loadtest.path_cost import RequestCost, cost_table

STAGES_MS = {"preprocess": 2.0, "encode": 10.0, "prefill": 3.0, "decode": 20.0, "postprocess": 0.5}


def cost(queue_ms: float) -> RequestCost:
    return RequestCost.of(
        STAGES_MS | {"queue": queue_ms, "total": 35.5 + queue_ms}, latency_ms=40.0 + queue_ms
    )


def test_the_path_is_the_total_minus_the_stages() -> None:
    assert (cost(2.5).path_ms, cost(2.5).client_ms) == (2.5, 7.0)
    assert cost(2.5).stages_ms == STAGES_MS


def test_the_table_has_a_row_for_each_case() -> None:
    table = cost_table(
        {"new": [cost(4.0)], "cached": [cost(1.0), cost(2.0), cost(3.0)]}
    ).splitlines()
    assert table[2].startswith("| new | 4.00 / 4.00 | 8.50 / 8.50 | 2.00 | 10.00 |")
    assert table[3].startswith("| cached | 2.00 / 3.00 | 6.50 / 7.50 |")
