"""Tool calls: what a request's tools mean for its prompt, its answer's grammar, and the reading of that answer.

Pure code, no I/O. `formats` says how a family of models writes calls; `tools` checks a request's tools; `grammar` makes the one
llguidance grammar that holds an answer to them; `parser` reads the answer as it comes. `plan` ties them together and is what a
front uses:

    calling = ToolCalling.of_model(setting, tokenizer, chat_template)              # once
    plan = calling.plan(tools, tool_choice, parallel_tool_calls)                   # per request; InvalidRequest names the field
    prompt = await tokenizer.encode_chat(messages, limit, plan.tools)
    spec = GenerateSpec(..., sampling with plan.grammar, shown_tokens=plan.shown_tokens)
    parser = plan.parser()                                                         # per answer; None where no call can come
    for piece in parser.push(delta.text): ...                                      # str, or ToolCallDelta
    for piece in parser.finish(): ...
    finish_reason = "tool_calls" if parser.calls and it would have been "stop" else as before
"""
