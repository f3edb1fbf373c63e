"""Tool calls: what a request's tools mean for its prompt, its answer's grammar, and the reading of that answer.

Pure code, no I/O. `formats` says how a family of models writes calls; `tools` checks a request's tools; `grammar` makes the one
llguidance grammar that holds an answer to them; `parser` reads the answer as it comes. `plan` ties them together and is what a
front uses:

    calling = ToolCalling.of_model(config.tool_parser, tokenizer)      # once
    plan = await calling.plan(tools, tool_choice, parallel, answer)    # per request; InvalidRequest names the field
    prompt = await tokenizer.encode_chat(messages, limit, plan.tools, calling.form)
    spec = GenerateSpec(prompt, sampling with plan.grammar, shown_tokens=plan.shown_tokens)
    parser = plan.parser()                                             # per answer; None where it is text alone
    parser.push(text), parser.finish()                                 # lists of str and ToolCallDelta
    parser.calls                                                       # more than 0: an answer that stopped ends by tool_calls
"""
