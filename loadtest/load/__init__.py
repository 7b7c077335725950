"""Load on a running service, sent by Locust: traffic, arrival times, SLOs, and a report.

locustfile   entry point for Locust; the number of users over time
load_run     one run, driven by Locust's events
session      state shared by the users of one process: connections, questions, samples
users        Locust's users: REST, gRPC, streams, comparisons
traffic/     which requests, and how many at which time; knows no network
senders/     arrival times, interfaces, checks of the answers
samples      the outcome of each request, collected from all workers
report       load.md; load.html is Locust's own report

Only the modules of this folder import Locust, which patches the whole process for gevent.
"""
