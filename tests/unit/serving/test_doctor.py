"""The doctor's verdicts, and the transport probe on this machine."""

import json
import sys
from pathlib import Path

import pytest

from kvtransfer.probe import TransportProbe, _read, probe_transports
from serving import cli, doctor_checks, hardware
from serving.doctor import Finding, Verdict


def named(findings: object, name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)  # type: ignore[attr-defined]


def test_the_probe_finds_what_moves_kv_here() -> None:
    probe = probe_transports(timeout_s=60)
    assert probe.error == ""
    assert probe.backends["UCX"] == ""
    assert "tcp/lo" in probe.interfaces


def test_a_probe_that_hangs_says_so() -> None:
    assert "did not answer within 0.01 s" in probe_transports(timeout_s=0.01).error


def test_what_was_found_before_a_crash_is_kept() -> None:
    output = 'noise\n{"trying": "UCX"}\n{"UCX": ""}\n\n{"trying": "GDS"}\nSegmentation fault'
    probe = _read(output, "ended with status -11")
    assert probe.backends == {"UCX": "", "GDS": "the process ended with status -11"}


def test_without_ucx_serval_cannot_run() -> None:
    finding = named(doctor_checks.nixl(TransportProbe({"UCX": "NIXL_ERR_BACKEND"})), "UCX")
    assert (finding.verdict, finding.required, finding.found) == (Verdict.MISSING, True, "NIXL_ERR_BACKEND")
    broken = named(doctor_checks.nixl(TransportProbe(error="ImportError: libcuda")), "nixl")
    assert (broken.verdict, broken.required) == (Verdict.MISSING, True)


def test_transports_are_told_apart() -> None:
    here = list(doctor_checks.transports(TransportProbe(interfaces=["tcp/lo", "posix/memory"])))
    assert [finding.verdict for finding in here] == [Verdict.WARN] * 3
    big = list(doctor_checks.transports(TransportProbe(interfaces=["cma/memory", "tcp/eth0", "rc_mlx5/mlx5_0:1"])))
    assert [finding.verdict for finding in big] == [Verdict.OK] * 3
    assert big[2].found == "rc_mlx5/mlx5_0:1"


def test_a_processor_without_bfloat16_gets_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "cpu_flags", lambda: frozenset({"avx2"}))
    finding = named(doctor_checks.processor(), "bfloat16")
    assert finding.verdict is Verdict.WARN
    assert "--dtype float32" in finding.meaning
    assert hardware.cpu_flags()


def test_json_has_every_finding_and_status_0_where_serval_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serval", "doctor", "--json"])
    assert cli.main() == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"group", "name", "verdict", "found", "meaning", "required"} == set(findings[0])
    assert {"torch", "grpcio", "nixl", "UCX", "/dev/shm", "bfloat16"} <= {finding["name"] for finding in findings}
    assert {finding["verdict"] for finding in findings} <= {"ok", "warn", "missing"}


def test_status_1_where_it_cannot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Finding("NIXL", "UCX", Verdict.MISSING, "[none]", "KV cannot be moved", required=True)
    monkeypatch.setattr(doctor_checks, "examine", lambda: [broken])
    monkeypatch.setattr(sys, "argv", ["serval", "doctor"])
    assert cli.main() == 1
    assert "[none]" in capsys.readouterr().out


def test_a_missing_compiler_is_said_to_cost_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The native kernels take what $CC names, cc or gcc."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = named(doctor_checks.tools(), "C compiler")
    assert (found.verdict, found.found) == (Verdict.WARN, "not found") and "native kernels" in found.meaning
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    found = named(doctor_checks.tools(), "C compiler")
    assert (found.verdict, found.found) == (Verdict.OK, str(tmp_path / "gcc"))
