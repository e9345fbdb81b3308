"""Images -> batches of crops and masks."""
