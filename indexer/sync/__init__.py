"""Folders -> an index that is in line with them."""
