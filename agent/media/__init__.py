"""The sound of calls: connections with the other parties, rooms, digits, tones, the card lent to them."""
