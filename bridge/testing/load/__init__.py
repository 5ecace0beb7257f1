"""A load generator: both ends of many calls against a running bridge, on an absolute schedule."""
