"""How good a call is: samples, levels, MOS, warnings. Measures; changes nothing."""
