"""A load of many calls on a running bridge: both ends of each, cheap, on an absolute schedule."""
