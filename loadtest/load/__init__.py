"""Load on a running service, sent by Locust: what is asked, when it is sent, what counts as good, and a report.

locustfile     what Locust loads; options: what it adds to Locust's own
load_run       one run, from Locust's events; session: what the users of one process share
traffic_mix    traffic_mix.yaml: apis, images, tasks and the SLO of each task
offer          which of it the service offers, from its own list of tasks
scenes         images to ask about, of several sizes, fresh or seen before
questions      one request after the other, drawn from the above
replies        what a model has answered, and whether that can be right
rest, grpc_api how a request is sent over each interface
users          Locust's users: REST, gRPC, streaming, compare
arrivals       when a user sends: closed loop, or the times of a Poisson process
plans          how much load at which time: stepping, ramp, soak
shape          a plan as Locust's LoadTestShape
saturation     the next step, and the saturation point, from the steps so far
samples        what became of a request; SLOs decide whether it was good
recorder       collects samples, over the network from distributed workers
service_metrics  queues, batches and time to first token from the service's /metrics
windows        the numbers of a stretch of time
report, facts, page, plots   load.json, load.md, load.html, load.png

Only locustfile, load_run, session, users and shape import Locust, which makes the whole process gevent's.
"""
