"""What a report says of its run: command, machine, service, mix."""

import os
import sys
from collections.abc import Mapping

from loadtest.load.options import Options
from loadtest.load.traffic_mix import TrafficMix
from loadtest.markdown import percent
from loadtest.processor import processor_name


def facts_of(mix: TrafficMix, options: Options, service: str, num_processes: int, seconds: float) -> Mapping[str, str]:
    """Return the facts of a run that is over."""
    kinds = ", ".join(f"{weight} {api}" for api, weight in mix.apis.items())
    loop = "open loop, a Poisson process" if options.arrivals == "open" else "closed loop"
    return {
        "command": f"`{' '.join(['python -m locust', *sys.argv[1:]])}`",
        "sent from": f"{processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; "
        f"{num_processes} process{'es' if num_processes > 1 else ''}",
        "service": service,
        "asked": f"{kinds}; {percent(mix.images.fresh)} of the images are new; {loop}; {seconds:.0f} s",
        "latency": "from the time that a request was due to its whole answer, of right answers",
    }
