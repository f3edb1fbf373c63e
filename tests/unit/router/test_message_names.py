"""What a chat message may say of its speaker."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from router.openai.messages import Message


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_name_is_a_string_or_none_and_an_empty_one_is_none(role: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Message)
    for name in (None, ""):
        assert "name" not in adapter.validate_python({"role": role, "content": "x", "name": name}).for_template()
    with pytest.raises(ValidationError, match="name"):
        adapter.validate_python({"role": role, "content": "x", "name": []})
