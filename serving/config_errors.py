"""What pydantic says of a wrong setting, as one line that names it."""

import difflib

from pydantic import BaseModel, ValidationError


def one_line(error: ValidationError, top: type[BaseModel]) -> str:
    """The first of pydantic's errors: `engine.block_size: must be greater than 0, not -1`."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name}: no such setting{_suggestion(first['loc'], top)}"
    requirement = (
        first["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("Input should", "must")
    )
    given = first["input"]
    # Long or structured values would not fit on the line and are not what a person typed.
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool | None) and len(repr(given)) < 60 else ""
    line = f"{name}: {requirement}{shown}" if name else requirement
    return " ".join(line.split())


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        model = inner
    near = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
