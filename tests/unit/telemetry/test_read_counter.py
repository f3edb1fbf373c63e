"""Counters that are read when somebody looks."""

from telemetry.metrics import Metrics


def test_nothing_before_there_is_anything_to_read() -> None:
    metrics = Metrics("decode", "d")
    assert b"serval_moe_assignments_total{" not in metrics.render()
    assert metrics.value("serval_moe_assignments_total") == 0


def test_what_is_shown_is_what_is_kept_now() -> None:
    metrics = Metrics("decode", "d")
    kept = {("real",): 5, ("zero",): 2}
    metrics.moe_assignments.read_from(lambda: kept)
    metrics.moe_product_rows.read_from(lambda: {(): kept["real",]})
    assert b'serval_moe_assignments_total{kind="real",role="decode",worker="d"} 5.0' in metrics.render()
    kept["real",] = 7
    assert metrics.value("serval_moe_assignments_total", kind="real") == 7
    assert metrics.value("serval_moe_assignments_total", kind="zero") == 2
    assert metrics.value("serval_moe_product_rows_total") == 7
