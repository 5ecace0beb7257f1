"""The live view: the state of calls in progress, as events for viewers."""
