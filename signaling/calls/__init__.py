"""A call as values, what can be asked of it, and the rules that move it. Nothing travels here."""
