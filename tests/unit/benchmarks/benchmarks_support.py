"""A scripted OpenAI server on a real socket: each completion is answered with the chunks that the test wrote."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

PAUSE = None
"""In a script: until the test sets `released`."""

Script = list[bytes | None]


def event(content: dict[str, Any] | str) -> bytes:
    return b"data: " + (content if isinstance(content, str) else json.dumps(content)).encode() + b"\n\n"


def token(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}], "usage": None})


def ending(tokens: int, prompt_tokens: int = 4) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 0}}
    return token("", "length") + event({"choices": [], "usage": usage}) + event("[DONE]")


def whole_answer(tokens: int) -> Script:
    return [token(f" {number}") for number in range(tokens)] + [ending(tokens)]


@dataclass
class ScriptedServer:
    """`answer` makes the script of a completion from its body; other paths give `pages`."""

    answer: Callable[[dict[str, Any]], Script]
    pages: dict[str, str] = field(default_factory=dict)
    status: str = "200 OK"
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    release_at: int | None = None
    """So many open at once release those that pause."""
    open_now: int = 0
    open_most: int = 0
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._respond(reader, writer)
        writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        path = head.split()[1]
        if path != "/v1/completions":
            page = self.pages.get(path)
            status = "404 Not Found" if page is None else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{page or ''}".encode())
            return
        length = int(head.split("content-length: ")[1].split()[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        if self.open_now == self.release_at:
            self.released.set()
        try:
            writer.write(f"HTTP/1.1 {self.status}\r\nconnection: close\r\n\r\n".encode())
            for chunk in self.answer(self.bodies[-1]):
                if chunk is PAUSE:
                    self.paused.set()
                    await self.released.wait()
                else:
                    writer.write(chunk)
                    await writer.drain()
        finally:
            self.open_now -= 1


@contextlib.asynccontextmanager
async def serving(server: ScriptedServer) -> AsyncIterator[ScriptedServer]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield server
