"""What a machine tells of itself, from made files; the comparison of two tables of speeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import lines
from edgerun.measure import board

PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n",
    "proc/meminfo": "MemTotal:        8255680 kB\n",
    "etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/temp": "61234\n",
    board.FIRMWARE: "50005\n",
}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_raspberry_pi(tmp_path: Path) -> None:
    root = machine(tmp_path, PI)
    found = board.description(root)
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["memory"] == "7.9 GiB"
    assert found["system"].startswith("Debian GNU/Linux 13 (trixie)")
    assert board.state(root) == {
        "governor": "ondemand",
        "frequency": "1500 to 2400 MHz",
        "temperature": "61.2 °C",
        "throttling": "under-voltage now, throttled now, under-voltage since start, throttled since start",
    }


def test_no_throttling_is_said(tmp_path: Path) -> None:
    assert board.state(machine(tmp_path, {board.FIRMWARE: "0"}))["throttling"] == "none"


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert board.state(tmp_path) == {}
    assert board.description(tmp_path).keys() == {"processor", "system", "Python"}


@pytest.mark.parametrize("name", PI)
@pytest.mark.parametrize("content", ["", "nonsense\n", "\xff\0"])
def test_strange_files_do_no_harm(tmp_path: Path, name: str, content: str) -> None:
    root = machine(tmp_path, PI | {name: content})
    assert board.description(root).keys() >= {"processor"}
    assert isinstance(board.state(root), dict)


def table(speed: float, seconds: float, processor: str = "A") -> dict[str, object]:
    rows = [
        {"work": "decode", "threads": 1, "unit": "tokens/s", "medians": {"edgerun": speed, "llama.cpp": 5.0}}
        | {"ratios": {"llama.cpp": 2.0}},
        {"work": "start", "threads": 1, "unit": "s", "medians": {"edgerun": seconds}, "ratios": {}},
    ]
    here = {"processor": processor, "cores": 4, "instruction_set": "neon", "date": "2026-11-24"}
    return {
        "machine": here,
        "rows": [row | {"ratios": {"llama.cpp": 2.0} if row["unit"] != "s" else {}} for row in rows],
    }


def test_tables_are_compared() -> None:
    text = "\n".join(lines(table(11.0, 1.0), table(10.0, 2.0)))
    assert "| decode | 1 | 11.0 tokens/s | 10.0 | +10% | llama.cpp 5.0 | 2.00 |" in text
    assert "| start | 1 | 1.0 s | 2.0 | +100% | – | – |" in text
    assert "| decode | 1 | 11.0 tokens/s | – | – | llama.cpp 5.0 | 2.00 |" in "\n".join(lines(table(11.0, 1.0), None))
    other = "\n".join(lines(table(11.0, 1.0), table(10.0, 2.0, "B")))
    assert "another processor, B: not compared" in other and "+10%" not in other
