"""What several tests of the planner plan for."""

from planner.capacity import Setting
from planner.decode_roofline import NumberFormat
from planner.gpus import find_gpu
from planner.model_files import find_model
from planner.overheads import measured_overheads


def longcat_setting(**changed: object) -> Setting:
    """LongCat-Flash as its makers measured it, at their price."""
    settings = {
        "model": find_model("longcat-flash"),
        "gpu": find_gpu("h800"),
        "number_format": NumberFormat(dense=2, experts=1, kv=2),
        "overheads": measured_overheads(),
        "gpu_hour_usd": 2.0,
        "draft_acceptance": 0.9,
    }
    return Setting(**settings | changed)  # type: ignore[arg-type]
