"""`python -m client --help`."""

from client.cli import main

main()
