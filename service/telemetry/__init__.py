"""Metrics and logs of the gateway; its traces are those of runners/telemetry/tracing.py."""
