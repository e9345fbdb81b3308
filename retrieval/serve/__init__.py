"""`seenit serve`: an index over HTTP, and the page that asks it."""
