"""Mock vLLM workers for smg, in its gRPC protocol (package smg-grpc-proto). Needs h2, protobuf and that package; runs in the
environment that smg is installed in."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from benchmarks.router_cost.answers import Answers
from benchmarks.router_cost.grpc_server import GrpcConnection
from benchmarks.router_cost.mock_engine import MockEngine, Stamps, Token
from benchmarks.router_cost.pipe import Json, serve

MAX_MODEL_LEN = 8192
SERVICE = "/vllm.grpc.engine.VllmEngine/"

Call = tuple[GrpcConnection, int]
Messages = list[tuple[GrpcConnection, int, bytes, bool]]


class Worker:
    """One server."""

    def __init__(self, model: str, folder: Path, answers: Answers, stamps: Stamps) -> None:
        self.engine: MockEngine[Messages] = MockEngine(answers, stamps, self)
        self._replies: dict[str, Any] = {
            "HealthCheck": vllm.HealthCheckResponse(healthy=True, message="Health"),
            "GetServerInfo": vllm.GetServerInfoResponse(server_type="vllm-grpc", data_parallel_size=1, max_num_seqs=1024),
            "GetLoads": vllm.GetLoadsResponse(dp_rank_count=1, loads=[vllm.SchedulerLoad(max_running_requests=1024)]),
            "Abort": vllm.AbortResponse(),
            "GetModelInfo": vllm.GetModelInfoResponse(
                model_path=str(folder),
                tokenizer_path=str(folder),
                served_model_name=model,
                is_generation=True,
                max_context_length=MAX_MODEL_LEN,
                max_req_input_len=MAX_MODEL_LEN,
                vocab_size=49152,
                model_type="llama",
                architectures=["LlamaForCausalLM"],
            ),
        }
        self._prompt_tokens: dict[Call, int] = {}

    async def start(self) -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: GrpcConnection(self._on_call, self._on_gone), "127.0.0.1", 0)
        self._running = loop.create_task(self.engine.run())
        self._server = server
        port = server.sockets[0].getsockname()[1]
        return f"grpc://127.0.0.1:{port}"

    def encode(self, tokens: list[Token]) -> Messages:
        messages: Messages = []
        for token in tokens:
            connection, stream = token.stream.key
            sent = token.stream.sent_tokens
            counts = {"prompt_tokens": self._prompt_tokens[token.stream.key], "completion_tokens": sent}
            chunk = vllm.GenerateStreamChunk(token_ids=(token.token_id,), **counts)
            messages.append((connection, stream, vllm.GenerateResponse(chunk=chunk).SerializeToString(), False))
            if token.is_last:
                complete = vllm.GenerateComplete(finish_reason="length", **counts)
                messages.append((connection, stream, vllm.GenerateResponse(complete=complete).SerializeToString(), True))
        return messages

    async def send(self, messages: Messages) -> None:
        for connection, stream, message, is_last in messages:
            await connection.write(stream, message)
            if is_last:
                self._prompt_tokens.pop((connection, stream), None)
                connection.end(stream)
        for connection in {connection for connection, *_ in messages}:
            await connection.drain()

    def _on_call(self, connection: GrpcConnection, stream: int, path: str, message: bytes) -> None:
        method = path.removeprefix(SERVICE)
        if method == "Generate":
            request = vllm.GenerateRequest.FromString(message)
            self._prompt_tokens[connection, stream] = len(request.tokenized.input_ids)
            connection.begin(stream)
            self.engine.add((connection, stream), request.sampling_params.max_tokens)
        elif (reply := self._replies.get(method)) is not None:
            connection.reply(stream, reply.SerializeToString())
        else:
            connection.refuse(stream)

    def _on_gone(self, connection: GrpcConnection, stream: int) -> None:
        self.engine.remove((connection, stream))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the model's folder")
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    answers = Answers.from_folder(arguments.folder)
    stamps = Stamps(len(answers))
    workers = [Worker(arguments.model, arguments.folder, answers, stamps) for _ in range(arguments.workers)]

    async def answer(question: Json) -> Json:
        if (pace_s := question.get("pace_s")) is None:
            return {"sent_s": stamps.sent_s}
        stamps.start()
        for worker in workers:
            worker.engine.pace_s = pace_s
        return {}

    await serve({"urls": [await worker.start() for worker in workers]}, answer)


if __name__ == "__main__":
    asyncio.run(main())
