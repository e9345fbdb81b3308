"""Candidates -> matches of patches under one geometry."""
