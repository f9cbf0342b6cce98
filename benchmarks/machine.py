"""Facts about the machine and the process that a benchmark runs in. Imports only the standard library."""

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# CPU flags that matter for integer products: AVX2, AVX-512, the dot products of VNNI, tiles of AMX.
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512vbmi",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
)


def peak_bytes() -> int:
    """Peak resident bytes of this process since it was started (`ru_maxrss` would count its parent's too)."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Resident bytes of this process now."""
    return _status("VmRSS")


def _status(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def cpu_model() -> str:
    """The processor's name, as far as the system reports it."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor()


def cpu_flags() -> list[str]:
    """Those of `FLAGS` that the processor has."""
    lines = _cpuinfo("flags")
    has = lines[0].split() if lines else []
    return [flag for flag in FLAGS if flag in has]


def _cpuinfo(key: str) -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]


def facts(threads: int, *packages: str) -> dict[str, object]:
    """Command, date, processor, threads and versions, for a results file."""
    return {
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "threads": threads,
        "versions": versions(*packages),
    }


def _script() -> str:
    """The path of the running script, relative to the repository's root."""
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    return script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name


def versions(*packages: str) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
