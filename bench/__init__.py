"""Benchmarks: each measures the product and its baseline alternately in one run."""
