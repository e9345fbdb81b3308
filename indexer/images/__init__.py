"""A file -> pixels. Imports nothing here, so that a decoding worker never loads torch."""
