"""Clients of the field, unmodified, against a real cluster with the embedded model."""

import json
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from client_tools import CLIENTS, clients_venv, run
from cluster_harness import ClusterSpec, RunningCluster
from cluster_shared import Clusters
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from pydantic import BaseModel, ConfigDict, Field

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def smol(clusters: Clusters, embedded_spec: ClusterSpec) -> RunningCluster:
    clients_venv()
    return clusters.get(embedded_spec)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where clients keep what they cache."""
    return tmp_path_factory.mktemp("clients-home")


class Capital(BaseModel):
    """What the structured answers are read into."""

    model_config = ConfigDict(extra="forbid")

    capital: str = Field(max_length=20)


NOTE: Any = {
    "type": "function",
    "function": {
        "name": "note",
        "description": "Notes a capital.",
        "parameters": Capital.model_json_schema(),
        "strict": True,
    },
}
NAMED: Any = {"type": "function", "function": {"name": "note"}}


class TestOpenAi:
    """The `openai` package, sync and async; tests/cluster/test_clients.py has its plain answers."""

    @pytest.fixture
    def ask(self, clusters: Clusters, embedded_spec: ClusterSpec) -> dict[str, Any]:
        self.cluster = clusters.get(embedded_spec)
        return {"model": self.cluster.model, "messages": QUESTION, "temperature": 0, "max_tokens": 64}

    def _api(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.cluster.url}/v1", api_key="none", max_retries=0, timeout=120)

    def _async_api(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.cluster.url}/v1", api_key="none", max_retries=0, timeout=120)

    def test_reads_structured_output_into_a_class(self, ask: dict[str, Any]) -> None:
        with self._api() as api:
            parsed = api.chat.completions.parse(**ask, response_format=Capital).choices[0]
        assert isinstance(parsed.message.parsed, Capital)
        assert parsed.finish_reason == "stop"

    def test_calls_the_tool_that_it_must(self, ask: dict[str, Any]) -> None:
        with self._api() as api:
            (choice,) = api.chat.completions.create(**ask, tools=[NOTE], tool_choice=NAMED).choices
            (call,) = choice.message.tool_calls or []
            assert call.function.name == "note"
            Capital.model_validate_json(call.function.arguments)
            messages = [*ask["messages"], choice.message, {"role": "tool", "tool_call_id": call.id, "content": "noted"}]
            after = api.chat.completions.create(**{**ask, "messages": messages}, tools=[NOTE], tool_choice="none")
        assert after.choices[0].message.content
        assert not after.choices[0].message.tool_calls

    async def test_streams_tool_calls(self, ask: dict[str, Any]) -> None:
        async with self._async_api() as api:
            asked: dict[str, Any] = {**ask, "tools": [NOTE], "tool_choice": "required", "parallel_tool_calls": False}
            whole = await api.chat.completions.create(**asked)
            stream = await api.chat.completions.create(**asked, stream=True)
            names, arguments, finish_reason = [], "", None
            async for chunk in stream:
                for choice in chunk.choices:
                    finish_reason = choice.finish_reason or finish_reason
                    for piece in choice.delta.tool_calls or []:
                        assert piece.function is not None
                        names += [piece.function.name] if piece.function.name else []
                        arguments += piece.function.arguments or ""
        assert names == ["note"]
        assert finish_reason == "tool_calls"
        assert whole.choices[0].message.tool_calls is not None
        assert arguments == whole.choices[0].message.tool_calls[0].function.arguments

    def test_responses(self, ask: dict[str, Any]) -> None:
        asked = {"model": ask["model"], "input": QUESTION[0]["content"], "temperature": 0, "max_output_tokens": 32}
        with self._api() as api:
            whole = api.responses.create(**asked)
            with api.responses.stream(**asked) as stream:
                text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
                final = stream.get_final_response()
        assert whole.status == "completed"
        assert "Paris" in whole.output_text
        assert text == final.output_text == whole.output_text
        assert whole.usage is not None and whole.usage.output_tokens > 0

    async def test_responses_parse(self, ask: dict[str, Any]) -> None:
        async with self._async_api() as api:
            answer = await api.responses.parse(
                model=ask["model"], input=QUESTION[0]["content"], temperature=0, max_output_tokens=64, text_format=Capital
            )
        assert isinstance(answer.output_parsed, Capital)

    def test_n_stop_and_logprobs(self, ask: dict[str, Any]) -> None:
        with self._api() as api:
            plain = api.chat.completions.create(**ask).choices[0].message.content or ""
            cut = api.chat.completions.create(**ask, stop=" Par").choices[0]
            asked = {**ask, "temperature": 1, "max_tokens": 6}
            several = api.chat.completions.create(**asked, n=3, seed=5, logprobs=True, top_logprobs=2).choices
        assert " Paris" in plain
        assert cut.message.content == plain.partition(" Par")[0]
        assert cut.finish_reason == "stop"
        assert [choice.index for choice in several] == [0, 1, 2]
        assert len({choice.message.content for choice in several}) > 1
        for choice in several:
            assert choice.logprobs is not None and choice.logprobs.content
            assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


@pytest.mark.long
class TestLiteLlm:
    def test_whole_streamed_structured_and_called(self, smol: RunningCluster, home: Path) -> None:
        printed = run(
            ["python", "ask_litellm.py", f"{smol.url}/v1", smol.model], CLIENTS, home, LITELLM_LOCAL_MODEL_COST_MAP="True"
        )
        said = json.loads(printed.splitlines()[-1])
        assert "Paris" in said["whole"]
        assert said["finish_reason"] == "stop"
        assert said["prompt_tokens"] > 0
        assert "".join(said["pieces"]) == said["whole"] == said["waited_for"]
        assert len(said["pieces"]) > 3
        assert "Paris" in said["text"]
        assert list(json.loads(said["structured"])) == ["capital"]
        assert said["tool"] == "note"
        assert list(json.loads(said["arguments"])) == ["capital"]
        assert "max_tokens" in said["refused"]


@pytest.mark.long
class TestLmEval:
    """EleutherAI's lm-eval, local-completions: one task that generates, one that compares log-likelihoods."""

    def test_both_kinds_of_task(self, smol: RunningCluster, home: Path, tmp_path: Path, embedded_folder: Path) -> None:
        arguments = {
            "model": smol.model,
            "base_url": f"{smol.url}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(embedded_folder),
            "num_concurrent": "4",
            "max_retries": "1",
        }
        command = ["lm_eval", "run", "--model", "local-completions", "--tasks", "serval_generate,serval_choose"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
        command += ["--include_path", ".", "--output_path", str(tmp_path)]
        run(command, CLIENTS, home, HF_HUB_OFFLINE="1")
        (file,) = tmp_path.rglob("results_*.json")
        results = json.loads(file.read_text())["results"]
        assert results["serval_generate"]["exact_match,word"] == 1.0
        assert results["serval_choose"]["acc,none"] == 1.0


@pytest.mark.long
class TestAiperf:
    """NVIDIA's aiperf, as a benchmark is run."""

    def test_profiles_a_chat_endpoint(self, smol: RunningCluster, home: Path, tmp_path: Path, embedded_folder: Path) -> None:
        report = self._profile(smol, home, tmp_path, embedded_folder, "--endpoint-type", "chat", "--streaming")
        assert report["request_count"]["avg"] == 8
        assert report["usage_completion_tokens"]["avg"] == 12
        assert report["usage_prompt_tokens"]["avg"] >= 48
        assert report["time_to_first_token"]["avg"] > 0
        assert report["inter_token_latency"]["avg"] > 0
        assert not report["error_summary"]

    @staticmethod
    def _profile(smol: RunningCluster, home: Path, folder: Path, tokenizer: Path, *more: str) -> dict[str, Any]:
        command = ["aiperf", "profile", "-m", smol.model, "--tokenizer", str(tokenizer), "--url", smol.url, *more]
        command += ["--isl", "48", "--isl-stddev", "0", "--osl", "12", "--osl-stddev", "0", "--extra-inputs", "ignore_eos:true"]
        command += ["--concurrency", "2", "--request-count", "8", "--random-seed", "1", "--ui", "none"]
        command += ["--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry", "--artifact-dir", str(folder)]
        run(command, folder, home)
        (file,) = folder.rglob("profile_export_aiperf.json")
        report: dict[str, Any] = json.loads(file.read_text())
        return report


class TestReflection:
    """A client that has none of our files, as grpcurl: everything that it knows, the server told it."""

    def test_calls_what_it_was_told_of(self, clusters: Clusters, embedded_spec: ClusterSpec) -> None:
        cluster = clusters.get(embedded_spec)
        with grpc.insecure_channel(cluster.grpc) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {"serval.v1.Serval", "grpc.health.v1.Health"} <= set(database.get_services())
            service = DescriptorPool(database).FindServiceByName("serval.v1.Serval")
            assert {"Generate", "GetModelInfo", "Tokenize", "Detokenize"} <= set(service.methods_by_name)

            (info,) = _call(channel, service.methods_by_name["GetModelInfo"], {})
            assert info["model"] == cluster.model
            chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
            ask = {"chat": chat, "sampling": {"temperature": 0, "maxTokens": 32}}
            messages = _call(channel, service.methods_by_name["Generate"], ask)

        assert "Paris" in "".join(message.get("text", "") for message in messages)
        assert ["finish" in message for message in messages] == [False] * (len(messages) - 1) + [True]
        assert messages[-1]["finish"]["reason"] == "FINISH_REASON_STOP"
        assert messages[-1]["finish"]["usage"]["promptTokens"] > 0


def _call(channel: grpc.Channel, method: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Every message of the answer, as JSON would have it."""
    asked, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = make(path, request_serializer=asked.SerializeToString, response_deserializer=answer.FromString)
    reply = call(ParseDict(request, asked()), timeout=60)
    return [MessageToDict(message) for message in (reply if method.server_streaming else [reply])]
