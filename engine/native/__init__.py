"""An optional decode step in C for one CPU thread in bfloat16 (docs/decisions/0009). Everything works without it."""
