"""Chat templates of families whose checkpoints may come without one. A checkpoint's own is always preferred."""

from pathlib import Path

from router.model import read_json

LONGCAT = """\
{%- if tools -%}
{{- '## Tools\\nYou can call these functions:\\n' -}}
{%- for tool in tools -%}{{- tool['function'] | tojson + '\\n' -}}{%- endfor -%}
{{- 'A call is\\n<longcat_tool_call>\\n{"name": name, "arguments": {...}}\\n</longcat_tool_call>\\n'
    + 'and several are written one after another.\\n\\n## Messages\\n' -}}
{%- endif -%}
{%- set state = namespace(round=0) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- 'SYSTEM:' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<longcat_tool_call>\\n' + ({'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson)
    + '\\n</longcat_tool_call>' -}}
{%- endfor -%}
{{- '</longcat_s>' -}}
{%- else -%}
{{- (' ' if not loop.first else '') + '[Round ' + state.round | string + '] '
    + ('TOOL:' if message['role'] == 'tool' else 'USER:') + message['content'] + ' ASSISTANT:' -}}
{%- set state.round = state.round + 1 -%}
{%- endif -%}
{%- endfor -%}
"""
"""LongCat-Flash-Chat's: rounds, the token that ends an answer, calls as JSON between its own markers."""


def builtin_template(folder: Path) -> str | None:
    """For the model whose config.json lies in `folder`, by its architecture; None for any other."""
    architectures = (read_json(folder / "config.json") or {}).get("architectures") or ["(none)"]
    return LONGCAT if str(architectures[0]).startswith("Longcat") else None
