"""Inputs that are nearly right: valid ones with bits flipped, pieces cut, copied, or exchanged for numbers at the edges."""

import json
import struct
from collections.abc import Iterator, Sequence
from random import Random

from protocol import cluster_pb2, serval_pb2

MODEL = "model"
"""Served by the cluster: the name of its folder."""

EDGES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"1e-400",
    b"NaN",
    b'""',
    b"[]",
    b"{}",
    b"[[[[[[[[",
    b'{"a":',
    b"\\ud800",
    b"\xff\xfe",
    b"\x00",
    b"\r\n",
    b"\r\n\r\n",
    b": ",
    b"chunked",
    b"Content-Length: 18446744073709551616",
    b"%00",
    b"../",
    b"\xf0\x9f\x98\x80",
    b"9" * 400,
)
FIELDS = (
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "echo",
    "guided_json",
    "structured_outputs",
    "input",
    "instructions",
    "tokens",
    "text",
    "min_tokens",
    "ignore_eos",
    "prompt_logprobs",
    "best_of",
    "priority",
)
VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    10**30,
    0.5,
    -0.0,
    1e300,
    "",
    "x",
    "\ud800",
    "é" * 50,
    [],
    [None],
    ["a", 1],
    [[1, 2]],
    {},
    {"type": "object"},
    {"a": {"b": [1]}},
    {"1": 5.0},
    [{"role": "user", "content": "x"}],
    [{"role": "tool"}],
    {"type": "json_schema", "json_schema": {}},
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
)


class Mutator:
    """The same seed makes the same inputs."""

    def __init__(self, seed: object) -> None:
        self._draw = Random(f"fuzz {seed}")

    def of(self, corpus: Sequence[bytes], count: int) -> Iterator[bytes]:
        for _ in range(count):
            data = bytearray(self._draw.choice(corpus))
            for _ in range(self._draw.choice((1, 1, 1, 2, 3, 8))):
                self._change(data, corpus)
            yield bytes(data)

    def json_bodies(self, corpus: Sequence[dict[str, object]], count: int) -> Iterator[bytes]:
        """Objects with fields exchanged, and every third of them with its bytes changed as well."""
        for number in range(count):
            body = dict(self._draw.choice(corpus))
            for _ in range(self._draw.choice((1, 1, 2, 4))):
                body[self._draw.choice(FIELDS)] = self._draw.choice(VALUES)
            data = json.dumps(body).encode()
            yield next(self.of((data,), 1)) if number % 3 == 0 else data

    def _change(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        draw = self._draw
        at = draw.randrange(len(data) + 1)
        match draw.randrange(8):
            case 0 | 1:
                if data:
                    data[at % len(data)] ^= 1 << draw.randrange(8)
            case 2:
                del data[at : at + draw.choice((1, 2, 8, 64, len(data)))]
            case 3:
                data[at:at] = draw.randbytes(draw.choice((1, 2, 8, 64)))
            case 4:
                data[at : at + draw.choice((0, 4, 8))] = struct.pack("<Q", draw.choice(EDGES))[: draw.choice((1, 4, 8))]
            case 5:
                other = draw.choice(corpus)
                begin = draw.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + draw.choice((4, 32, 256))]
            case 6:
                data[at:at] = draw.choice(WORDS)
            case _:
                data[at:at] = data[at : at + draw.choice((1, 16, 128))] * draw.choice((1, 2, 20))


SAMPLING = serval_pb2.Sampling(
    temperature=0.7, top_p=0.9, seed=5, max_tokens=2, logit_bias={65: 1.0}, logprobs=2, stop_token_ids=[3]
)

GENERATE = [
    serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=[1, 2, 3]), sampling=SAMPLING),
    serval_pb2.GenerateRequest(text="hello", sampling=SAMPLING, stop=["x"], n=2, echo=True),
    serval_pb2.GenerateRequest(
        chat=serval_pb2.Chat(
            messages=[serval_pb2.ChatMessage(role="user", content="hi")],
            tools=[serval_pb2.Tool(name="f", parameters_json='{"type":"object"}', strict=True)],
        ),
        sampling=serval_pb2.Sampling(max_tokens=2),
    ),
    serval_pb2.GenerateRequest(
        text="a",
        sampling=serval_pb2.Sampling(
            max_tokens=2, structured_output=serval_pb2.StructuredOutput(json_schema='{"type":"object"}'), prompt_logprobs=1
        ),
    ),
    serval_pb2.GenerateRequest(
        text="a", sampling=serval_pb2.Sampling(max_tokens=2, structured_output=serval_pb2.StructuredOutput(regex="[ab]+"))
    ),
    serval_pb2.GenerateRequest(
        chat=serval_pb2.Chat(messages=[serval_pb2.ChatMessage(role="user", content="hi")]),
        sampling=serval_pb2.Sampling(max_tokens=2),
    ),
]
PEER = cluster_pb2.Peer(
    name="decode-7",
    incarnation=7,
    address="127.0.0.1:9",
    process=cluster_pb2.ProcessIdentity(boot_id="b", pid_namespace="n", pid=1, start_ticks=1),
)

UNARY: dict[str, list[bytes]] = {
    "/serval.v1.Serval/GetModelInfo": [b"", b"\x08\x01"],
    "/serval.v1.Serval/Tokenize": [
        serval_pb2.TokenizeRequest(text="hello", add_special_tokens=True).SerializeToString(),
        serval_pb2.TokenizeRequest(chat=GENERATE[2].chat).SerializeToString(),
    ],
    "/serval.v1.Serval/Detokenize": [serval_pb2.DetokenizeRequest(token_ids=[1, 2, 300]).SerializeToString()],
}
STREAMS: dict[str, list[bytes]] = {"/serval.v1.Serval/Generate": [each.SerializeToString() for each in GENERATE]}

PREFILL_UNARY: dict[str, list[bytes]] = {
    "/serval.cluster.v1.PrefillService/Introduce": [
        cluster_pb2.IntroduceRequest(
            decode=PEER, transport_metadata=b"nixlSerDes|Agent", layout_fingerprint="x", landing_address=4096, landing_blocks=10
        ).SerializeToString()
    ],
    "/serval.cluster.v1.PrefillService/Abort": [
        cluster_pb2.AbortRequest(lease_id=1, decode_incarnation=7, prefill_incarnation=8).SerializeToString()
    ],
}
PREFILL_STREAMS: dict[str, list[bytes]] = {
    "/serval.cluster.v1.PrefillService/Prefill": [
        cluster_pb2.PrefillRequest(
            request_id="fuzz",
            decode_incarnation=7,
            prefill_incarnation=8,
            prompt=[1, 2, 3],
            sampling=SAMPLING,
            lease=cluster_pb2.WriteLease(lease_id=1, first_landing_block=0, blocks=1, duration_s=1.0),
        ).SerializeToString()
    ]
}

HELLO = cluster_pb2.Hello(
    role=cluster_pb2.ROLE_DECODE,
    peer=PEER,
    model="tiny",
    layout_fingerprint="x",
    block_size=16,
    kv_blocks=10,
    max_model_len=64,
    metrics_address="127.0.0.1:9",
    max_sequences=4,
    kv_token_bytes=64,
)
FROM_WORKER = [
    cluster_pb2.FromWorker(hello=HELLO),
    cluster_pb2.FromWorker(load=cluster_pb2.LoadReport(running=1, kv_blocks_total=10, steps=5)),
    cluster_pb2.FromWorker(
        load=cluster_pb2.LoadReport(
            running=2,
            kv_blocks_used=3,
            kv_blocks_total=10,
            steps=6,
            prefill_tokens_per_s=1e3,
            step_s=0.01,
            transfer_bytes_per_s=1e6,
            avoided_prefill=[7],
            local_prefill_max_tokens=4,
            busy_s=2.0,
            untold_busy_s=0.5,
            lost_busy_s=0.1,
            told_busy=[cluster_pb2.BusyTime(peer=2, busy_s=0.3)],
        )
    ),
    cluster_pb2.FromWorker(cache=cluster_pb2.CacheChange(reset=True, stored=[1, 2], evicted=[3])),
    cluster_pb2.FromWorker(draining=cluster_pb2.Draining()),
    cluster_pb2.FromWorker(
        step=cluster_pb2.StepOutput(
            outputs=[
                cluster_pb2.RequestOutput(request=1, token_ids=[5], ended=cluster_pb2.Ended(outcome="stop", cached_tokens=1))
            ]
        )
    ),
]

COMPLETION: dict[str, object] = {"model": MODEL, "prompt": "hello", "max_tokens": 2, "temperature": 0}
CHAT: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BODIES: dict[str, list[dict[str, object]]] = {
    "/v1/completions": [COMPLETION, {**COMPLETION, "stream": True}, {**COMPLETION, "prompt": [1, 2, 3], "logprobs": 1}],
    "/v1/chat/completions": [CHAT, {**CHAT, "stream": True}, {**CHAT, "response_format": {"type": "json_object"}}],
    "/v1/responses": [
        {"model": MODEL, "input": "hi", "max_output_tokens": 2},
        {"model": MODEL, "input": CHAT["messages"], "max_output_tokens": 2},
    ],
    "/tokenize": [{"model": MODEL, "prompt": "hello"}, {"model": MODEL, "messages": CHAT["messages"]}],
    "/detokenize": [{"model": MODEL, "tokens": [1, 2, 3]}],
}
HEADS = [
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 54\r\n"
    b"Authorization: Bearer sk-x\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b'X-Request-Id: abc\r\nConnection: close\r\n\r\n{"model": "model", "prompt": "hello", "max_tokens": 2}',
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/models/a%20b HTTP/1.0\r\nAccept: */*\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 19\r\nConnection: close\r\n\r\n"
    b'{"prompt": "hello"}',
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
]
