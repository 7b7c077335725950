"""Load on a running service through its network interfaces.

locustfile   entry point for Locust (make loadtest): users, arrival times, Locust's own reports
traffic      traffic_mix.yaml: which requests are sent
senders      one request over each interface, and the check of its answer
memory       the service's processes beside it: how much memory grows; kills of runners

Only locustfile and senders import gevent, which patches the whole process.
"""
