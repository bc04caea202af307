"""The language both sides of a call speak: values and rules, without I/O and without a clock."""
