import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import distributed, nn

from laboratory.training.runs.processes import (
    average_gradients,
    join_processes,
    map_rows,
    process_index,
)

EXPECTED = [[[2.0, 3.0]], [0.0, 1.0, 4.0], [16.0]]


def _train(environment: dict[str, str]) -> Any:
    """Return the averaged gradients of a process, 1, 2 in the first and 3, 4 in the second; and
    squares that the processes computed together.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        join_processes()
    try:
        index = process_index()
        used = nn.Linear(2, 1, bias=False)
        unused = nn.Linear(2, 1)
        used.weight.grad = torch.tensor([[1.0, 2.0]]) + 2 * index
        average_gradients([used, unused])
        assert unused.weight.grad is None
        squares = map_rows(torch.square, [torch.arange(3.0), torch.tensor([4.0])])
        return [used.weight.grad.tolist(), *(stack.tolist() for stack in squares)]
    finally:
        distributed.destroy_process_group()


def test_the_processes_of_torchrun_share_their_gradients() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # free_port's module takes seconds
        port = str(listener.getsockname()[1])
    environments = [
        {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in "01"
    ]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        second = pool.submit(_train, environments[1])
        assert _train(environments[0]) == second.result() == EXPECTED


def test_a_run_of_one_process_keeps_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    join_processes()
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[1.0, 2.0]])
    average_gradients([layer])
    assert process_index() == 0
    assert layer.weight.grad.tolist() == [[1.0, 2.0]]
