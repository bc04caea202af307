"""What travels: requests, answers, events, media documents, presence. No rule."""
