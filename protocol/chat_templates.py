"""Chat templates of model families, as Jinja: for checkpoints that come without one, and for the tiny ones that are made here."""

LONGCAT_CHAT = """\
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
