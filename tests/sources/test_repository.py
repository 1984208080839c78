"""The real huggingface_hub client against a stand-in of the Hub: every case in a process of its own, because the
client reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import CheckpointError, HubError
from edgerun.sources.repository import Reference, _choose, parse
from tests.sources.checkpoints_made import gguf_file, safetensors_folder
from tests.sources.stand_in import TOKEN, Hub, Repository

SCRIPT = """
import json, sys
from edgerun.errors import EdgerunError
from edgerun.sources.hub import pull, resolve
seen = []
try:
    verb = pull if sys.argv[2:] == ["pull"] else resolve
    answer = {"path": str(verb(sys.argv[1], progress=lambda done, total, what: seen.append([done, total, what])))}
except EdgerunError as error:
    answer = {"error": str(error), "kind": type(error).__name__}
heavy = {"huggingface_hub", "gguf", "onnx", "onnxruntime", "numba", "numpy", "safetensors", "pip", "filelock", "tqdm"}
answer["heavy"] = sorted(heavy & set(sys.modules))
answer["progress"] = seen
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = safetensors_folder(tmp_path_factory.mktemp("checkpoint"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_file(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


class Machine:
    """A user's machine: caches of its own, settings as given."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home = home
        self.settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "EDGERUN_CACHE": str(home / "cache")}

    def start(self, model: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "EDGERUN_"))}
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, model, *arguments],
            env=clean | {"PYTHONPATH": os.pathsep.join(sys.path)} | self.settings | settings,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, model: str, *arguments: str, **settings: str) -> dict[str, Any]:
        child = self.start(model, *arguments, **settings)
        output, errors = child.communicate(timeout=120)
        assert errors == "", "nothing but the callback may show progress"
        assert child.returncode == 0
        answer: dict[str, Any] = json.loads(output)
        assert "\n" not in answer.get("error", "")
        return answer


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def test_safetensors_are_exported_once(hub: Hub, machine: Machine, weights: dict[str, bytes]) -> None:
    clutter = {"README.md": b"# hi", "pytorch_model.bin": b"\x80", "original/consolidated.00.pth": b"x"}
    hub.repositories["org/tiny"] = Repository(weights | clutter)
    cold = machine("org/tiny")
    assert (Path(cold["path"]) / "model.onnx").is_file(), cold
    assert any("Downloading org/tiny" in what and done == total > 0 for done, total, what in cold["progress"])
    assert not any("pytorch" in request or "original" in request for request in hub.requests)
    asked = len(hub.requests)
    warm = machine("org/tiny")
    assert warm["path"] == cold["path"] and warm["heavy"] == [] and len(hub.requests) == asked
    package = json.loads((Path(cold["path"]) / "edgerun.json").read_text())
    assert package["source"]["repo"] == "org/tiny"


def test_pull_brings_a_newer_revision(hub: Hub, machine: Machine, weights: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = Repository(weights)
    old = machine("org/tiny")["path"]
    newer = safetensors_folder(tmp_path / "newer", seed=1)
    hub.repositories["org/tiny"] = Repository({path.name: path.read_bytes() for path in newer.iterdir()})
    assert machine("org/tiny")["path"] == old
    new = machine("org/tiny", "pull")["path"]
    assert new != old and machine("org/tiny")["path"] == new


def test_gguf_files(hub: Hub, machine: Machine, gguf_bytes: bytes) -> None:
    files = {"m-Q8_0.gguf": gguf_bytes, "m-F16.gguf": b"no", "m-Q2_K.gguf": b"no", "mmproj-m.gguf": b"no"}
    hub.repositories["org/m-GGUF"] = Repository(files)
    chosen = machine("org/m-GGUF")
    assert (Path(chosen["path"]) / "model.onnx").is_file(), chosen
    assert not any("F16" in r or "Q2_K" in r or "mmproj" in r for r in hub.requests)
    for name in ("org/m-GGUF:Q8_0", "org/m-GGUF:q8_0", "org/m-GGUF/m-Q8_0.gguf", "hf.co/org/m-GGUF:m-Q8_0.gguf"):
        assert "path" in machine(name), name
    assert "m-F16.gguf" in machine("org/m-GGUF:Q3_K")["error"]


def test_a_package_is_used_as_it_is(hub: Hub, machine: Machine, weights: dict[str, bytes]) -> None:
    hub.repositories["org/tiny"] = Repository(weights)
    made = Path(machine("org/tiny")["path"])
    hub.repositories["org/package"] = Repository({path.name: path.read_bytes() for path in made.iterdir()})
    got = machine("org/package")
    folder = Path(got["path"])
    assert "onnx" not in got["heavy"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in made.iterdir()}
    assert not any(path.is_symlink() for path in folder.iterdir()), "onnx refuses external data behind a link"
    assert machine("org/package")["heavy"] == []


def test_an_interrupted_download_is_resumed(hub: Hub, machine: Machine, weights: dict[str, bytes]) -> None:
    chunk = 10 << 20  # what the client keeps of a broken connection is whole chunks of this size
    hub.repositories["org/tiny"] = Repository(weights | {"extra.json": b" " * (chunk + 5000)})
    hub.break_after["extra.json"] = chunk + 1000
    assert "path" in machine("org/tiny")
    assert any(request.endswith(f"extra.json bytes={chunk}-") for request in hub.requests), hub.requests


def test_ctrl_c_ends_a_download(hub: Hub, machine: Machine, weights: dict[str, bytes]) -> None:
    hub.repositories["org/tiny"] = Repository(weights | {"extra.json": b" " * (100 << 20)})
    hub.delay = 0.01  # the whole would take 16 seconds
    child = machine.start("org/tiny")
    deadline = time.monotonic() + 30
    while not any("GET" in r and "extra.json" in r for r in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    child.communicate(timeout=60)
    assert child.returncode != 0 and time.monotonic() - start < 8


def test_offline_and_unreachable(hub: Hub, machine: Machine, weights: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = Repository(weights)
    error = machine("org/tiny", HF_HUB_OFFLINE="1")
    assert error["kind"] == "HubError" and "HF_HUB_OFFLINE" in error["error"]
    first = machine("org/tiny")["path"]
    asked = len(hub.requests)
    # The Hub's cache has it, ours was cleared: exported again without network.
    for i, setting in enumerate([{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]):
        again = machine("org/tiny", **setting, EDGERUN_CACHE=str(tmp_path / f"cleared-{i}"))
        assert Path(again["path"]).name == Path(first).name, again
    assert len(hub.requests) == asked
    unreachable = machine("org/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in unreachable["error"]


def test_access(hub: Hub, machine: Machine, weights: dict[str, bytes]) -> None:
    hub.repositories["org/private"] = Repository(weights, access="private")
    hub.repositories["org/gated"] = Repository(weights, access="gated")
    assert "no such model" in machine("org/private")["error"]
    assert "path" in machine("org/private", HF_TOKEN=TOKEN)
    gated = machine("org/gated", HF_TOKEN=TOKEN)
    assert gated["kind"] == "HubError" and "accept its terms" in gated["error"]
    missing = machine("org/missing")["error"]
    assert missing.startswith("org/missing: no such model") and "HF_TOKEN" in missing
    hub.repositories["org/tiny"] = Repository(weights)
    assert "no branch, tag or commit v9" in machine("org/tiny@v9")["error"]


def test_a_hub_that_is_down(hub: Hub, machine: Machine) -> None:
    hub.status = 501
    assert "HTTP 501" in machine("org/tiny")["error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Reference("org/name")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", Reference("HuggingFaceTB/SmolLM2-135M-Instruct")),
        ("org/name-GGUF:Q4_0", Reference("org/name-GGUF", None, "Q4_0")),
        ("org/name/a/b-Q4_0.gguf", Reference("org/name", None, "a/b-Q4_0.gguf")),
        ("org/n.1@v2:f.gguf", Reference("org/n.1", "v2", "f.gguf")),
        ("https://huggingface.co/org/name", Reference("org/name")),
        ("https://huggingface.co/org/name/blob/main/f.gguf", Reference("org/name", "main", "f.gguf")),
        ("https://huggingface.co/org/name/tree/main", Reference("org/name", "main")),
        ("hf.co/org/name:Q8_0", Reference("org/name", None, "Q8_0")),
        ("name", None),
        ("org/../x", None),
        ("/org/name", None),
        ("org/na me", None),
        ("a--b/c", None),
    ],
)
def test_references(text: str, expected: Reference | None) -> None:
    assert parse(text) == expected


def test_choosing_among_files() -> None:
    ask = Reference("o/n")
    assert _choose(ask, ["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a.Q4_0.gguf"])[0] == "a.Q4_0.gguf"
    assert _choose(ask, ["x-Q3_K.gguf"])[0] == "x-Q3_K.gguf"
    assert (
        _choose(ask, ["config.json", "consolidated.safetensors", "model-1.safetensors"])[1][0] == "model*.safetensors"
    )
    with pytest.raises(CheckpointError, match="split"):
        _choose(ask, ["a-Q4_0-00001-of-00002.gguf"])
    with pytest.raises(CheckpointError, match="pickled"):
        _choose(ask, ["config.json", "pytorch_model.bin"])
    with pytest.raises(CheckpointError, match="LoRA"):
        _choose(ask, ["adapter_config.json", "adapter_model.safetensors"])
    with pytest.raises(CheckpointError, match="neither"):
        _choose(ask, ["README.md"])
    with pytest.raises(HubError, match="no GGUF files"):
        _choose(Reference("o/n", None, "Q4_0"), ["config.json"])
