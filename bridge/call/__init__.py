"""One call: its audio in both directions, its conversation, its timers, and its end."""
