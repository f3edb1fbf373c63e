"""Clients of the field, unmodified, against a real cluster with the embedded model."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_tools import CLIENTS, clients_venv, run
from cluster_harness import ClusterSpec, RunningCluster
from conftest import Clusters
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def smol(clusters: Clusters, embedded_spec: ClusterSpec) -> RunningCluster:
    clients_venv()
    return clusters.get(embedded_spec)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where clients keep what they cache."""
    return tmp_path_factory.mktemp("clients-home")


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
