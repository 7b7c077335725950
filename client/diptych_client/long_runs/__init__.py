"""Runs that survive interruption: a log of answers, a file of failures, concurrent requests.

append_log.py stores each answer when it arrives; sending.py limits the requests in flight and sorts
their errors; outputs.py writes the results, and replaces no file of the user's.
"""

from diptych_client.long_runs.append_log import AppendLog, RunError
from diptych_client.long_runs.outputs import Outputs, refusal
from diptych_client.long_runs.sending import FailureLog, send_all

__all__ = ["AppendLog", "FailureLog", "Outputs", "RunError", "refusal", "send_all"]
