"""Runs that survive interruption: a log of answers, a file of failures, concurrent requests.

append_log.py stores each answer when it arrives; sending.py limits the requests in flight and sorts
their errors.
"""

from diptych_client.long_runs.append_log import AppendLog, RunError
from diptych_client.long_runs.sending import FailureLog, send_all

__all__ = ["AppendLog", "FailureLog", "RunError", "send_all"]
