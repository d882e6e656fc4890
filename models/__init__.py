"""Models that ship with Galley, and the scripts that make them."""
