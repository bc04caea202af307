"""Benchmarks, one command a module here: each measures the product and its baseline alternately in one run.
What they are built of is `lab/`, what they compare with `peers/`, how a call sounds `sound/`."""
