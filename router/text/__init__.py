"""Between text and tokens: templates, tokenizer, incremental detokenizer, stop strings."""
