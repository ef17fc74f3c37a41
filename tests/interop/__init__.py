"""Against other implementations, as their users run them."""
