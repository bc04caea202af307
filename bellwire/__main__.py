"""`python -m bellwire`."""

from bellwire.main import main

main()
