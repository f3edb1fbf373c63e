"""The decode worker: admits requests, receives their KV layer by layer, checks it, and streams the answers."""
