"""Metrics and logs of the gateway; its traces are those of wire/telemetry/tracing.py."""
