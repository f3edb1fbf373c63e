"""Moves KV blocks between processes: knows bytes, layers and leases, no models. The only place that imports NIXL.

A prefill process has one `Sender`, a decode process one `Receiver`; each owns the NIXL agent of its process on a thread of its
own. Writes land in the receiver's landing zone, never in its pool; the receiver copies what has landed into the pool and checks
the digest on the copy.
"""
