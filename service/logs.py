"""How this service logs: one line a request, to standard error."""

import logging


def configure_logging() -> None:
    """Let the project's own loggers write lines with time and level, beside BentoML's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("service", "runners"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
