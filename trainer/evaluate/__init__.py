"""How good a backbone's features are."""
