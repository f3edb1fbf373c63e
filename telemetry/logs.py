"""Logging: one line per event on stderr, with the process's name. Prompts and answers are never logged."""

import logging


def configure(name: str, level: str = "INFO") -> None:
    """Call once per process. Libraries that chat are held to warnings."""
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s %(levelname).1s {name} %(name)s: %(message)s", force=True)
    for chatty in ("httpx", "httpcore", "nixl", "asyncio", "grpc", "transformers", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
