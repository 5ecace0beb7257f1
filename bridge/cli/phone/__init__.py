"""`bridge phone`: the command, the caller it simulates, and what it shows of the call."""
