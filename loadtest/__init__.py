"""Load on a running service through its network interfaces, and what measurements share.

locustfile   entry point for Locust (make loadtest): users, arrival times, Locust's own reports
traffic      traffic_mix.yaml: which requests are sent
senders      one request over each interface, and the check of its answer
figures      percentiles, rounding, tables
processes    start and stop of servers, and their processor time

Only locustfile and senders import gevent, which patches the whole process.
"""
