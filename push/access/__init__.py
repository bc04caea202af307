"""Who asks, and what they may: API keys, tokens, revocations. No routes."""
