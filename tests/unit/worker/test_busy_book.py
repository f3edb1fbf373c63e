"""What was told and lost is kept apart by router, and bounded."""

from protocol import cluster_pb2
from worker.busy_book import PEERS, ROUTERS, BusyBook


def described(book: BusyBook, router: int) -> tuple[float, dict[int, float]]:
    load = cluster_pb2.LoadReport()
    book.describe(load, router)
    return load.lost_busy_s, {one.peer: one.busy_s for one in load.told_busy}


def test_each_router_hears_of_its_own_requests() -> None:
    book = BusyBook()
    book.told(router=1, peer=7, seconds=1.0)
    book.told(router=1, peer=7, seconds=0.5)
    book.told(router=1, peer=8, seconds=0.25)
    book.told(router=2, peer=7, seconds=4.0)
    book.lost(router=2, seconds=3.0)
    assert described(book, 1) == (0.0, {7: 1.5, 8: 0.25})
    assert described(book, 2) == (3.0, {7: 4.0})
    assert described(book, 3) == (0.0, {}), "a router that comes anew"
    assert described(book, 1) == (0.0, {7: 1.5, 8: 0.25}), "so far, not since the last report"


def test_whom_nothing_was_told_for_long_is_forgotten_first() -> None:
    book = BusyBook()
    for peer in range(PEERS):
        book.told(router=1, peer=peer, seconds=1.0)
    book.told(router=1, peer=0, seconds=1.0)
    book.told(router=1, peer=PEERS, seconds=1.0)
    _, told = described(book, 1)
    assert len(told) == PEERS and told[0] == 2.0 and 1 not in told
    for router in range(2, ROUTERS + 2):
        book.lost(router, 1.0)
    assert described(book, 1) == (0.0, {}), "routers that were restarted often"
