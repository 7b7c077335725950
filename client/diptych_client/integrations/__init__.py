"""The client inside other tools: agents (Model Context Protocol), CVAT, FiftyOne. Each module needs an extra."""
