"""`bellwire demo`: a call between simulated stations, told step by step. Nothing that a real call needs."""
