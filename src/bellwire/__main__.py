"""`python -m bellwire`."""

from bellwire.cli.main import main

main()
