"""How a call sounds and what it costs, for `bench/audio`: who stands in it, what is heard, and how well."""
