"""Hypercorn and Quart-Trio as this project needs them: what they leave out is added here."""
