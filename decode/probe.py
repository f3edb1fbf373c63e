"""A real transfer of one KV block from a prefill worker, for its own sake."""

import asyncio

from decode.parts import Parts
from decode.remote_prefill import RemotePrefill
from engine.block_allocator import OutOfBlocks
from protocol import cluster_pb2
from protocol.errors import Overloaded, TransferFailed
from protocol.ids import BlockId, Incarnation, RequestId
from protocol.sampling import SamplingParams

ATTEMPT = 1


async def probe(parts: Parts, peer: cluster_pb2.Peer, name: str) -> None:
    """Returns when the block is here and verified. Raises ServalError when it is not within decode.probe_timeout_s, Overloaded when
    there is no room here to try. What it takes it gives back; nothing of it can be found in the prefix cache."""
    kv = parts.engine.kv_cache
    try:
        blocks = kv.allocate(1)
    except OutOfBlocks as error:
        raise Overloaded("no KV block is free for a probe") from error
    remote = None
    try:
        lease = parts.receiver.reserve(RequestId(name), ATTEMPT, Incarnation(peer.incarnation), [BlockId(blocks[0])])
        remote = RemotePrefill(parts.peers.get(peer), parts.receiver, parts.quarantine, lease, parts.config)
        remote.start(
            cluster_pb2.PrefillRequest(
                request_id=name,
                attempt=ATTEMPT,
                decode_incarnation=parts.incarnation,
                prefill_incarnation=peer.incarnation,
                prompt=[0] * kv.block_size,
                sampling=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True).to_proto(),
                lease=lease.to_proto(),
            )
        )
        async with asyncio.timeout(parts.config.probe_timeout_s):
            await remote.first_token()
            await remote.landed()
    except TimeoutError as error:
        raise TransferFailed(f"{peer.name} took more than {parts.config.probe_timeout_s:g} s for a probe") from error
    finally:
        if remote is not None:
            remote.cancel()
            await remote.settle()
        kv.release(blocks)
        parts.line.advance()
