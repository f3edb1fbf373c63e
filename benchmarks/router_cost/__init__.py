"""What the router costs per token, beside a peer's router, both before mock workers."""
