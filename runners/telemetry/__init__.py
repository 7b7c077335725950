"""Metrics, tracing and the watchdog, for runners and gateway."""
