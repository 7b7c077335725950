"""How many requests each workload gets: fixed on the embedded checkpoints, by the machine's speed at base scale.

Every server of a model gets the same requests. Where a machine is too slow for the time that is left, rounds have fewer
requests, down to a least number; a round that takes twice what was expected is cut.
"""

from dataclasses import dataclass

from loadtest.workloads import LENGTHS, NUM_CLIENTS, WorkloadName

_SMALL_LIMIT_S = 30.0
# Shares of a server's time at base scale; the rest is for starting it.
_SHARES: dict[WorkloadName, float] = {"mixed": 0.45, "one_image": 0.15, "decode_heavy": 0.2, "single": 0.1}
_NUM_TASKS = 10  # of one_image
_DECODE_HEAVY_COST = 2.0  # of one of its requests, in mixed ones
_LIMIT_FACTOR = 2.0
_LEAST_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The rounds of one workload."""

    workload: WorkloadName
    num_requests: int
    num_rounds: int
    limit_s: float  # of one round


def embedded_plan(is_endless: bool, is_quick: bool) -> tuple[RoundPlan, ...]:
    """Return the rounds of an embedded checkpoint; only endless ones write long answers."""
    rounds = 1 if is_quick else 3
    if is_endless:
        return (RoundPlan("decode_heavy", 16 if is_quick else 32, rounds, _SMALL_LIMIT_S),)
    return (
        RoundPlan("single", 10, rounds, _SMALL_LIMIT_S),
        RoundPlan("mixed_4", 16 if is_quick else 32, 1, _SMALL_LIMIT_S),
        RoundPlan("mixed", 32 if is_quick else 64, rounds, _SMALL_LIMIT_S),
        RoundPlan("one_image", _NUM_TASKS, rounds, _SMALL_LIMIT_S),
    )


def base_plan(request_s: float, allowance_s: float) -> tuple[RoundPlan, ...]:
    """Return the rounds of a model of real size, where the first peer takes `request_s` for a request.

    `allowance_s` is the time of one server.
    """
    budget = {workload: share * allowance_s / request_s for workload, share in _SHARES.items()}  # in mixed requests
    clients = NUM_CLIENTS["mixed"]
    num_single = _clamped(budget["single"], 3, 8, 1)
    num_mixed = _clamped(budget["mixed"], clients, 3 * clients, clients)
    num_decode_heavy = _clamped(budget["decode_heavy"] / _DECODE_HEAVY_COST, len(LENGTHS), 32, len(LENGTHS))
    num_images = _clamped(budget["one_image"] / _NUM_TASKS, 1, 3, 1)
    return (
        RoundPlan("single", num_single, 1, _limit_s(num_single * request_s)),
        RoundPlan("mixed", num_mixed, 1, _limit_s(num_mixed * request_s)),
        RoundPlan("one_image", _NUM_TASKS, num_images, _limit_s(_NUM_TASKS * request_s)),
        RoundPlan("decode_heavy", num_decode_heavy, 1, _limit_s(num_decode_heavy * request_s * _DECODE_HEAVY_COST)),
    )


def _clamped(value: float, least: int, most: int, multiple_of: int) -> int:
    return min(most, max(least, int(value) // multiple_of * multiple_of))


def _limit_s(expected_s: float) -> float:
    return max(_LEAST_LIMIT_S, _LIMIT_FACTOR * expected_s)
