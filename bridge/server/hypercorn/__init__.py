"""Hypercorn's Trio worker as this project needs it. All of its private names are used here."""
