"""From samples to the report.

samples          the outcome of each request, collected from all workers
service_metrics  queues, batches and time to first token from the service's /metrics
windows          the numbers of an interval
report           load.json, load.md, load.html, load.png; page and plots draw the last two
"""
