"""Results -> text, pages and images."""
