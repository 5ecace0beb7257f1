"""What is going on in calls right now, for those who watch."""
