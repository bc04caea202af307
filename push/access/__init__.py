"""Who asks, and what they may: API keys and access tokens, verified, and what was revoked. No routes."""
