"""Which workers take a request, and what it sends them."""
