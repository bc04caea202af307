"""FCM: accounts, messages, what Google's answers mean."""
