"""How much a worker is given at a time. What waits at a worker is computed first come, first served; what waits in the router's
line goes by weight and priority. So workers get as much as keeps them busy, and no more.

Pure: reads a worker's reports and this router's own counts.
"""

from router.workers import PREFILL, Worker


def has_decode_room(worker: Worker, prompt_tokens: int, overcommit: int) -> bool:
    """It can take one more sequence with a prompt of that length at once, or few enough wait there already. What it does not
    say bounds nothing. `overcommit`: requests that may wait there."""
    if worker.hello.max_sequences and worker.requests >= worker.hello.max_sequences + overcommit:
        return False
    if worker.has_blocks_for(prompt_tokens) or not worker.requests:
        return True
    # Who was sent since the last report is in no line that it shows. Some of them need not wait; that errs for a short line.
    return worker.load.waiting_for_blocks + worker.sent_since_report < overcommit


def has_compute_room(worker: Worker, window_s: float, now: float) -> bool:
    """The prompts that are there already will be computed within `window_s`, at the speed that it reports. A prefill worker has
    room for a second prompt in any case, so that it goes on with that one while the next is on its way; and so has a worker
    that has not measured its speed."""
    tokens_per_s = worker.load.prefill_tokens_per_s
    if not tokens_per_s or (worker.hello.role == PREFILL and worker.in_flight < 2):
        return True
    # This router's own prompts are known to the moment. Of other routers' what a report said shrinks with its age, or two
    # routers would each wait for the other while the worker idles.
    elsewhere = worker.queued_tokens - worker.computing_tokens - tokens_per_s * (now - worker.reported_at)
    return worker.computing_tokens + max(0.0, elsewhere) <= window_s * tokens_per_s
