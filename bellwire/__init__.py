"""The `bellwire` command: the one way to start, ask and mend everything."""
