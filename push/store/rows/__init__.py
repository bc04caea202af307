"""One module for each kind of row: reading and writing it. No rule, no transaction of its own."""
