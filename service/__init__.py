"""The gateway: HTTP and gRPC interfaces, admission, images, and calls of the runners.

It composes `tasks` (prompts and parsers), `imaging` (pixels) and `wire` (calls to runners), and
starts `runners`.
"""

VERSION = "0.2.0"
