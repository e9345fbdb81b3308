"""A run's state, snapshots, trials and reports."""
