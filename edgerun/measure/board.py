"""The machine under a measurement, as Linux tells it: which board, which governor, whether it is throttled. What a
machine does not tell is left out."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

THROTTLED = {
    0: "under-voltage now",
    1: "frequency capped now",
    2: "throttled now",
    3: "at the soft temperature limit now",
    16: "under-voltage since start",
    17: "frequency was capped since start",
    18: "throttled since start",
    19: "at the soft temperature limit since start",
}
"""Bits of the Raspberry Pi's firmware."""
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
CPUS = "sys/devices/system/cpu"
NUMBER = "-?[0-9]+"


def description(root: Path = Path("/")) -> dict[str, str]:
    """What stays as it is: board, processor, memory, system."""
    board = _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name")
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.MULTILINE)
    facts = {
        "board": board,
        "processor": f"{found[1] if found else ''} {platform.machine()}, {os.cpu_count()} cores".strip(),
        "memory": f"{int(memory[1]) / 2**20:.1f} GiB" if memory else "",
        "system": f"{system[1] if system else platform.system()}, Linux {platform.release()}"
        if platform.system() == "Linux"
        else platform.platform(),
        "Python": platform.python_version(),
    }
    return {name: value for name, value in facts.items() if value}


def state(root: Path = Path("/")) -> dict[str, str]:
    """What may change while something is measured: governor, frequencies, temperature, throttling."""
    governors = _values(root, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor")
    frequencies = [int(value) // 1000 for value in _values(root, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq", NUMBER)]
    temperatures = [int(value) / 1000 for value in _values(root, "sys/class/thermal/thermal_zone*/temp", NUMBER)]
    facts = {
        "governor": ", ".join(dict.fromkeys(governors)),
        "frequency": "" if not frequencies else f"{min(frequencies)} to {max(frequencies)} MHz",
        "temperature": "" if not temperatures else f"{max(temperatures):.1f} °C",
        "throttling": _throttling(_read(root / FIRMWARE)),
    }
    return {name: value for name, value in facts.items() if value}


def _throttling(word: str) -> str:
    """The firmware's hexadecimal word as a list; empty where there is none."""
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]+", word):
        return ""
    bits = int(word, 16)
    return ", ".join(text for bit, text in THROTTLED.items() if bits >> bit & 1) or "none"


def _values(root: Path, pattern: str, form: str = ".+") -> list[str]:
    return [value for path in sorted(root.glob(pattern)) if re.fullmatch(form, value := _read(path))]


def _read(path: Path) -> str:
    """A small file of the system, without what ends it; empty where it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""
