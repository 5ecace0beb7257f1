"""Decides which calls are admitted: limits, slots and tickets."""
