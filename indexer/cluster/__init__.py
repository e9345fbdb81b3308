"""Work on many machines through Ray, which is optional and imported in `session` alone."""
