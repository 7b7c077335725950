"""Load tests and measurements of a running service, through its network interfaces and commands
only.

locust -f loadtest/load/locustfile.py
                                   load on a running service up to its saturation point (make
                                   loadtest); load/
python -m loadtest.soak            long mixed load, and whether the resources of the processes stay
                                   flat; soak_traffic
python -m loadtest.gateway_limit   requests per second of gateways over simulated_runner

figures     percentiles, rounding, tables
processes   start and stop of servers, and their resources
"""
