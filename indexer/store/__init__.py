"""Where records are kept: one protocol, and the engines behind it."""
