"""What happens in a call while it lasts: who says what, what was heard, what silence means."""
