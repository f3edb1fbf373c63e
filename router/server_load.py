"""What this router tells load balancers in front of several: how much is open here, and how full the workers are."""

from router.workers import DECODE, Membership
from telemetry.model_server import ServerLoad


def server_load(model: str, open_requests: int, waiting: int, members: Membership) -> ServerLoad:
    """`waiting`: those of the open requests that have no token yet. Without a worker the KV cache counts as full: nobody should be
    sent here."""
    workers = members.pool(DECODE)
    blocks = sum(worker.load.kv_blocks_total or worker.hello.kv_blocks for worker in workers)
    held = sum(worker.load.kv_blocks_used for worker in workers)
    return ServerLoad(
        model=model,
        waiting=waiting,
        running=open_requests - waiting,
        kv_usage=held / blocks if blocks else 1.0,
        block_size=members.block_size,
        kv_blocks=blocks,
    )
