"""What belongs to the matrix, and how its report reads; no process is started."""

from itertools import product

import matrix_report
from matrix_cells import LAYERS, Cell, Fault, State, Victim, cells
from matrix_report import CellReport
from matrix_result import Trial

from protocol import lifecycle
from worker.hold import Point

CELL = Cell(Victim.DECODE, State.RESERVED, Fault.KILL)


def test_no_cell_is_left_out() -> None:
    found = list(cells())
    assert len(found) == len(set(found)) == 3 * 8 * 4
    assert set(found) == {Cell(*parts) for parts in product(Victim, State, Fault)}


def test_states_are_told_in_the_words_of_the_lifecycle() -> None:
    words = set(lifecycle.State)
    for point in {cell.point for cell in cells()}:
        cell = next(cell for cell in cells() if cell.point is point and not cell.waits_in_router)
        told = [word for word in words if cell.is_there(_facts(point, str(word)))]
        assert len(told) == 1, point


def test_a_third_is_reached_when_its_layers_are_at_the_receiver() -> None:
    cell = Cell(Victim.PREFILL, State.SECOND_THIRD, Fault.KILL)
    sent = [layers for layers in range(LAYERS + 1) if cell.is_there({"state": "computing", "layers_sent": layers})]
    assert sent == [4]


def test_what_clients_have_tells_states_apart_too() -> None:
    assert [CELL.tokens_fit(tokens) for tokens in (0, 1)] == [True, False]
    first = Cell(Victim.DECODE, State.FIRST_TOKEN, Fault.KILL)
    assert [first.tokens_fit(tokens) for tokens in (0, 1, 2)] == [False, True, False]
    decoding = Cell(Victim.ROUTER, State.DRAINING, Fault.STOP)
    assert [decoding.tokens_fit(tokens) for tokens in (0, 1, 2, 9)] == [False, False, True, True]


def test_a_cell_fails_with_any_of_its_trials_and_when_it_did_not_run() -> None:
    good = Trial(CELL, 1, hits=2, outcomes={"answered": 2}, recover_s=[0.1, 0.3], whole_s=4.0)
    bad = Trial(CELL, 2, hits=1, outcomes={"answered": 1}, recover_s=[0.2], wrong=["leaked: decode-1: 3 KV blocks"])
    assert CellReport(CELL, (good,)).wrong == []
    assert CellReport(CELL, (good, bad)).wrong == ["leaked: decode-1: 3 KV blocks"]
    assert CellReport(CELL, (), "needs CAP_NET_ADMIN").wrong == ["not run: needs CAP_NET_ADMIN"]
    summary = CellReport(CELL, (good, bad)).summary()
    assert summary["outcomes"] == {"answered": 3}
    assert summary["recover_s"] == {"samples": 3, "p50": 0.2, "p99": 0.298}


def test_the_table_has_a_row_per_state_and_says_what_failed() -> None:
    lost = Trial(CELL, 1, hits=1, outcomes={"error: UNAVAILABLE": 1}, wrong=["hit of 7 tokens: UNAVAILABLE: gone"])
    lines = matrix_report.table([CellReport(CELL, (lost,))]).splitlines()
    assert len(lines) == 2 + 3 * 8
    assert "| decode | reserved | **failed** 1 error: UNAVAILABLE |" in "\n".join(lines)


def _facts(point: Point, state: str) -> dict[str, object]:
    layers = {Point.FIRST_THIRD: 2, Point.SECOND_THIRD: 4, Point.LAST_THIRD: 6, Point.FIRST_TOKEN: 4}.get(point, 0)
    blocks = 0 if point is Point.DECODE_QUEUED else 5
    return {"state": state, "layers_sent": layers, "kv_blocks": blocks, "has_landing_slot": point is Point.RESERVED}
