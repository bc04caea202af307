"""What is asked of the backend as Twilio asks a TwiML App's, whom to ring, and what it is then told."""
