"""Weights -> a network that gives CLS and patch features."""
