"""What benchmarks are built of: servers, networks, sound cards, load, and how it is measured."""
