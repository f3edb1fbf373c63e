"""Settings from a file and flags, and the one line that a wrong one gets."""

import re
from pathlib import Path

import pytest
import yaml

from engine.tiny import write_tiny_llama
from protocol.errors import ConfigError
from serving import settings_yaml
from serving.config import ServalConfig, given, load, parse_settings
from serving.model_folder import embedded_folder


def write(folder: Path, text: str) -> Path:
    path = folder / "serval.yaml"
    path.write_text(text)
    return path


def error_of(file: Path | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as raised:
        load(file, {name.replace("__", "."): value for name, value in flags.items()})
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_without_anything_it_is_one_of_each_with_the_embedded_model() -> None:
    config = load(None, {})
    assert (config.cluster.prefill, config.cluster.decode) == (1, 1)
    assert (config.router.http_port, config.router.grpc_port, config.router.link_port) == (8000, 8001, 8002)
    assert config.model == config.router.model_dir == embedded_folder()
    assert config.router.model == "smollm2-135m-instruct"
    assert config.engine.threads == 1


def test_a_flag_wins_over_the_file_and_an_absent_flag_does_not(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {block_size: 32, max_batch_tokens: 128}\ncluster: {decode: 2}\n")
    config = load(file, given({"engine.block_size": 64, "engine.max_batch_tokens": None}))
    assert (config.engine.block_size, config.engine.max_batch_tokens, config.cluster.decode) == (64, 128, 2)


def test_sizes_have_units_in_the_file_and_as_flags(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {kv_memory_bytes: 512MiB}\ntransfer: {landing_bytes: 64MiB}\n")
    assert load(file, {}).transfer.landing_bytes == 64 << 20
    assert load(file, {}).engine.kv_memory_bytes == 512 << 20
    assert load(file, {"engine.kv_memory_bytes": "1GiB"}).engine.kv_memory_bytes == 1 << 30


def test_off_is_a_word_and_a_switch_takes_it_too(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {speculation: off, prefix_cache: off, check_integrity: on}\n")
    for engine in (
        load(file, {}).engine,
        load(None, parse_settings(["engine.speculation=off", "engine.prefix_cache=no", "engine.check_integrity=true"])).engine,
    ):
        assert (engine.speculation, engine.prefix_cache, engine.check_integrity) == ("off", False, True)


def test_a_model_folder_gives_the_served_name(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "my-model")
    assert load(None, {"model": folder}).router.model == "my-model"
    assert load(None, {"model": folder, "router.model": "other"}).router.model == "other"


def test_one_host_for_everything_unless_the_router_has_its_own() -> None:
    assert load(None, {"cluster.host": "127.0.0.2"}).router.host == "127.0.0.2"
    assert load(None, {"cluster.host": "127.0.0.2", "router.host": "127.0.0.3"}).router.host == "127.0.0.3"


def test_what_is_printed_can_be_read_again(tmp_path: Path) -> None:
    config = load(None, {"engine.block_size": 8, "router.http_port": 0})
    assert load(write(tmp_path, config.to_yaml()), {}) == config
    assert ServalConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("engine__block_size", 0, "engine.block_size: must be greater than or equal to 1, not 0"),
        ("engine__dtype", "float8", "engine.dtype: must be 'auto', 'float32' or 'bfloat16', not 'float8'"),
        ("cluster__decode", "many", "cluster.decode: must be a valid integer"),
        ("router__policy", "best", "router.policy: must be 'prefix_aware', 'least_loaded' or 'round_robin', not 'best'"),
        ("engine__blok_size", 4, "engine.blok_size: no such setting; did you mean block_size?"),
        ("engin__block_size", 4, "engin: no such setting; did you mean engine?"),
        ("engine__kv_memory_bytes", "lots", "engine.kv_memory_bytes: must be a size like 512MiB or 1GiB, not 'lots'"),
        ("model", "/no/such/folder", "model: /no/such/folder is not a Hugging Face model folder"),
        ("model", 7, "model: must be the path of a folder, not 7"),
        ("router__model_dir", "/elsewhere", "router.model_dir: must be left out"),
        ("engine", 3, "engine: must be a mapping of settings"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_setting(name: str, value: object, message: str) -> None:
    assert error_of(**{name: value}).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: [", "serval.yaml:1: not valid YAML"),
        ("- a\n- b\n", "serval.yaml: must be a mapping of settings"),
        ("engine:\n  block_size: 1.5\n", "engine.block_size: must be a valid integer"),
        ("nonsense: 1\n", "nonsense: no such setting"),
        ("engine: {threads: 1}\nengine: {block_size: 32}\n", "serval.yaml:2: not valid YAML: engine is set twice"),
        ("engine:\n  threads: 1\n  threads: 2\n", "serval.yaml:3: not valid YAML: threads is set twice"),
        ("model: 2026-13-45\n", "serval.yaml: not valid YAML: month must be in 1..12"),
        (f"engine: {{threads: {'9' * 5000}}}\n", "serval.yaml: not valid YAML: Exceeds the limit"),
        ("engine: " + "[" * 3000, "serval.yaml: not valid YAML: maximum recursion depth exceeded"),
        ("engine: {1: 512MiB}\n", "engine.1: "),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: No such file or directory"


def test_an_empty_file_and_an_empty_group_mean_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}) == load(None, {})
    assert load(write(tmp_path, "engine:\n"), {}) == load(None, {})


def test_null_switches_off_what_a_file_has_set(tmp_path: Path) -> None:
    file = tmp_path / "serval.yaml"
    file.write_text("engine: {threads: 4}\nscaling: {period_s: 5}\n")
    assert load(file, {}).scaling is not None
    config = load(file, parse_settings(["scaling=null", "engine.threads=null"]))
    assert (config.scaling, config.engine.threads) == (None, None)


def test_settings_on_the_command_line_are_yaml() -> None:
    assert parse_settings(["a.b=3", "c=null", "d=x=y"]) == {"a.b": 3, "c": None, "d": "x=y"}
    for pair in ("block_size", "=32"):
        with pytest.raises(ConfigError, match="must be NAME=VALUE"):
            parse_settings([pair])
    with pytest.raises(ConfigError, match="is not a YAML value"):
        parse_settings(["model=2026-13-45"])


def test_an_alias_may_be_changed(tmp_path: Path) -> None:
    text = "engine: &common {block_size: 32, threads: 1}\nprefill_engine: {<<: *common, threads: 2}\n"
    config = load(write(tmp_path, text), {})
    assert (config.engine.threads, config.engine_of("prefill").threads) == (1, 2)


def test_every_setting_says_what_it_is() -> None:
    config = load(None, {})
    for group in yaml.safe_load(config.to_yaml()):
        model = getattr(config, group)
        for name, field in getattr(type(model), "model_fields", {}).items():
            assert field.description, f"{group}.{name}"


def test_clients_are_told_the_context_that_workers_hold() -> None:
    assert load(None, {"engine.max_model_len": 512}).router.max_model_len == 512
    assert load(None, {"engine.max_model_len": 512, "router.max_model_len": 300}).router.max_model_len == 300
    assert load(None, {}).router.max_model_len is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decode.abort_timeout_s": 4.0}, "decode.abort_timeout_s: must be more than prefill.abort_timeout_s"),
        ({"transfer.barrier_timeout_s": 4.0}, "prefill.abort_timeout_s: must be more than transfer.barrier_timeout_s"),
        ({"transfer.write_timeout_s": 30.0}, "transfer.renew_after_s: must be more than transfer.write_timeout_s"),
    ],
)
def test_a_wait_that_would_end_before_its_answer_is_refused(tmp_path: Path, settings: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(None, {"model": write_tiny_llama(tmp_path / "tiny"), **settings})


def test_a_pool_may_have_engines_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {tensor_parallel_size: 2, block_size: 32}\nprefill_engine: {kv_memory_bytes: 64MiB}\n")
    config = load(file, {"decode_engine.tensor_parallel_size": 4})
    prefill, decode = config.engine_of("prefill"), config.engine_of("decode")
    assert (prefill.tensor_parallel_size, prefill.block_size, prefill.kv_memory_bytes) == (2, 32, 64 << 20)
    assert (decode.tensor_parallel_size, decode.block_size, decode.kv_memory_bytes) == (4, 32, config.engine.kv_memory_bytes)
    assert ServalConfig.model_validate_json(config.model_dump_json()).engine_of("decode") == decode


def test_a_wrong_setting_of_one_pool_names_the_pool() -> None:
    too_few = error_of(decode_engine__tensor_parallel_size=0)
    assert too_few == "decode_engine.tensor_parallel_size: must be greater than or equal to 1, not 0"
    assert error_of(prefill_engine__blok_size=8) == "prefill_engine.blok_size: no such setting; did you mean block_size?"


def test_two_groups_may_be_merged_into_one() -> None:
    text = "a: &a {threads: 1}\nb: &b {block_size: 32}\nengine: {<<: *a, <<: *b}\n"
    assert settings_yaml.parse(text)["engine"] == {"threads": 1, "block_size": 32}
