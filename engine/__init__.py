"""Model execution: tokens in, tokens out. Paged KV pool, scheduler, forward, sampler. Knows no network."""
