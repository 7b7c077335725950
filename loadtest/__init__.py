"""Load on a running service through its network interfaces, and what measurements share.

locustfile   entry point for Locust (make loadtest): users, arrival times, Locust's own reports
traffic      traffic_mix.yaml: which requests are sent
senders      one request over each interface, and the check of its answer
endurance    100,000 requests or images, beside killed processes: what grows, what is lost
figures      tables
processes    start and stop of servers

Only locustfile and senders import gevent, which patches the whole process.
"""
