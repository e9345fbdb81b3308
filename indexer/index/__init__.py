"""One index: its manifest, path keys, tags and copies."""
