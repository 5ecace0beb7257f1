"""What is counted, timed and traced."""
