"""HTML pages from Jinja templates: one theme, light and dark, one policy that forbids scripts and requests."""
