"""Models in repositories of the Hugging Face Hub, through the `huggingface_hub` library and its own cache, which
resumes what was interrupted and knows the user's token (HF_TOKEN), endpoint (HF_ENDPOINT) and offline mode
(HF_HUB_OFFLINE)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.errors import CheckpointError, EdgerunError, HubError
from edgerun.progress import Progress

_PREFIX = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|^hf://(?:models/)?")
_NAME = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME}?[A-Za-z0-9_])(?:@(?P<revision>[\w./-]+?))?"
    r"(?:/(?:resolve|blob|tree)/(?P<branch>[\w.-]+))?(?:[:/](?P<wanted>[\w][\w./+-]*))?/?"
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
# The formats that are kept bit for bit come first, then those that lose least on the way to ours.
_PREFERENCE = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_1", "Q5_0", "Q6_K", "F16", "BF16", "F32")

_PACKAGE_PATTERNS = ["*.json", "*.onnx", "*.data", "*.jinja", "LICENSE*"]
_TEXT_PATTERNS = ["*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class Reference:
    """What a user asks of the Hub. repo: "org/name"; revision: branch, tag or commit; wanted: a file's path, or a
    quantisation's name as ollama and llama.cpp take it ("Q4_0"); None lets edgerun choose."""

    repo: str
    revision: str | None = None
    wanted: str | None = None

    @property
    def label(self) -> str:
        """A name for the cache."""
        return "--".join([self.repo, *([self.revision] if self.revision else []), *filter(None, [self.wanted])])


@dataclass(frozen=True)
class Fetched:
    """A repository's files on this machine. commit: the revision's hash; source: what to tell people it is."""

    path: Path
    is_package: bool
    commit: str
    source: str


def parse(text: str) -> Reference | None:
    """`org/name`, with `@revision`, `:QUANT`, `:file.gguf` or `/file.gguf` behind it, or such a page's address on the
    Hub; None if it is nothing of the kind."""
    match = _REFERENCE.fullmatch(_PREFIX.sub("", text))
    if match is None or ".." in text or "--" in match["repo"]:
        return None
    return Reference(match["repo"], match["revision"] or match["branch"], match["wanted"])


def endpoint() -> str:
    """The address of the Hub that this process talks to."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def fetch(reference: Reference, progress: Progress) -> Fetched:
    """Download what `reference` needs, as far as it isn't in the Hub's cache. Without network, what is there is used.

    Raises `HubError` (no such repository or file, no permission, no network, offline) and `CheckpointError` (the
    repository holds nothing that can be exported)."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError as error:
        raise HubError(
            f"{reference.repo}: fetching needs the Python package {error.name}; pip install 'edgerun[export]'"
        ) from error

    with _explained(reference), _quiet():
        offline = False
        try:
            info = huggingface_hub.HfApi(library_name="edgerun").model_info(reference.repo, revision=reference.revision)
            files = [sibling.rfilename for sibling in info.siblings or []]
        except Exception as error:
            if not isinstance(error, OfflineModeIsEnabled) and not _is_network(error):
                raise
            try:
                folder = Path(
                    huggingface_hub.snapshot_download(
                        reference.repo, revision=reference.revision, allow_patterns=[], local_files_only=True
                    )
                )
            except LocalEntryNotFoundError:
                raise error from None
            offline = True
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        chosen, patterns = _choose(reference, files)
        cancelled = threading.Event()

        def download() -> str:
            return huggingface_hub.snapshot_download(
                reference.repo,
                revision=reference.revision,
                allow_patterns=patterns,
                ignore_patterns=None if chosen else ["*/*"],
                local_files_only=offline,
                library_name="edgerun",
                tqdm_class=_bar(progress, f"Downloading {reference.repo}", cancelled),
            )

        folder = Path(_interruptible(download, cancelled))
    is_package = "edgerun.json" in patterns
    source = f"{reference.repo}/{chosen}" if chosen else reference.repo
    return Fetched(folder / chosen if chosen else folder, is_package, folder.name, source)


def _choose(reference: Reference, files: Sequence[str]) -> tuple[str | None, list[str]]:
    """The one GGUF file to take, or None for the folder as a whole, and patterns of what to download."""
    models = sorted(
        file
        for file in files
        if file.lower().endswith(".gguf") and not file.rpartition("/")[2].startswith(("mmproj", "imatrix"))
    )
    whole = [file for file in models if not _SPLIT.search(file)]
    if reference.wanted:
        found = [f for f in models if f == reference.wanted] or [f for f in whole if _is_quant(f, reference.wanted)]
        if not found:
            has = f"it has {', '.join(models[:12])}" if models else "it has no GGUF files"
            raise HubError(f"{reference.repo}: no file or quantisation {reference.wanted}; {has}")
        return _one(reference, min(found, key=len))
    top = {file for file in files if "/" not in file}
    if {"edgerun.json", "model.onnx"} <= top:
        return None, ["edgerun.json", *_PACKAGE_PATTERNS]
    # Some repositories hold every tensor twice, as the family's own "consolidated" files too.
    weights = [f for f in top if f.endswith(".safetensors") and not f.startswith(("consolidated", "adapter"))]
    if weights and "config.json" in top:
        pattern = "model*.safetensors" if any(f.startswith("model") for f in weights) else "*.safetensors"
        return None, [pattern, *_TEXT_PATTERNS]
    for quant in _PREFERENCE:
        for file in whole:
            if _is_quant(file, quant):
                return _one(reference, file)
    if models:
        return _one(reference, (whole or models)[0])
    if "adapter_config.json" in top:
        raise CheckpointError(f"{reference.repo}: a LoRA adapter, not a whole model; take its base model")
    kinds = "PyTorch's pickled weights only" if any(f.endswith(".bin") for f in top) else "neither safetensors nor GGUF"
    raise CheckpointError(f"{reference.repo}: holds {kinds}; take a repository with safetensors or GGUF files")


def _one(reference: Reference, file: str) -> tuple[str, list[str]]:
    if _SPLIT.search(file):
        raise CheckpointError(
            f"{reference.repo}: {file} is one part of a split GGUF file; take a file in one piece, or merge the parts "
            "with llama-gguf-split"
        )
    # The pattern language has no escape character but brackets.
    return file, [re.sub(r"([*?\[])", r"[\1]", file)]


def _is_quant(file: str, quant: str) -> bool:
    return re.search(rf"(?:^|[-._/]){re.escape(quant)}\.gguf$", file, re.IGNORECASE) is not None


def _interruptible(work: Callable[[], str], cancelled: threading.Event) -> str:
    """`work()`, so that ctrl-C ends it: the library itself would first wait for every file that is under way."""
    outcome: concurrent.futures.Future[str] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result()
    except BaseException:
        cancelled.set()
        raise


def _bar(progress: Progress, what: str, cancelled: threading.Event) -> type[Any]:
    """A progress bar of the kind that huggingface_hub wants, which shows nothing and tells `progress`; it is updated
    by the threads that download, so it is also where they learn that nobody waits for them any more."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *arguments: Any, **named: Any) -> None:
            named.pop("name", None)
            # Bytes come on two bars where the transfer compresses: the one of the files' own bytes counts.
            self.counts = named.get("unit") == "B" and not str(named.get("desc", "")).startswith("Downloading bytes")
            super().__init__(*arguments, **(named | {"disable": False, "file": io.StringIO()}))

        def display(self, *arguments: Any, **named: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> None:
            if cancelled.is_set():
                raise InterruptedError("cancelled")
            super().update(n)
            if self.counts:
                progress(int(self.n), int(self.total or 0), what)

    return Bar


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's own warnings would be printed between the lines of whoever runs us; what matters is raised."""
    from logging import ERROR

    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    try:
        yield
    except EdgerunError:
        raise
    except Exception as error:
        raise HubError(_explanation(reference, error)) from error


def _explanation(reference: Reference, error: Exception) -> str:
    from huggingface_hub import errors
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repo = reference.repo
    if isinstance(error, GatedRepoError):
        return (
            f"{repo}: gated: accept its terms at {endpoint()}/{repo}, then set HF_TOKEN to a token that may read it "
            "(or run `hf auth login`)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: no branch, tag or commit {reference.revision}; see {endpoint()}/{repo}/tree/main"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo}: no such model at {endpoint()}, or a private one; check the spelling, or set HF_TOKEN if it is "
            "private"
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        cause: BaseException | None = error
        while cause is not None and not _is_network(cause):
            cause = cause.__cause__
        if cause is None:
            return f"{repo}: not (wholly) downloaded yet, and HF_HUB_OFFLINE is set; unset it, or give a local path"
        return _unreachable(repo, cause)
    if isinstance(error, HfHubHTTPError):
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            return f"{repo}: access refused (HTTP {code}); set HF_TOKEN to a token that may read it"
        if code == 429:
            return f"{repo}: too many requests to {endpoint()}; wait a few minutes, or set HF_TOKEN"
        return f"{repo}: {endpoint()} answers with HTTP {code}; try again later"
    if _is_network(error):
        return _unreachable(repo, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{repo}: no space left on the disk of the Hub's cache; free some, or set HF_HOME to another disk"
    return f"{repo}: cannot be downloaded ({_first_line(error)}); try again, or download it and give the local path"


def _unreachable(repo: str, error: BaseException) -> str:
    return (
        f"{repo}: {endpoint()} cannot be reached ({_first_line(error)}); check the network or HF_ENDPOINT, or give a "
        "local path"
    )


def _is_network(error: BaseException) -> bool:
    """Whether nothing, or no whole answer, came back. The library's HTTP client was changed more than once, so its
    errors are known by their package and name."""
    kinds = (
        "ConnectError",
        "ConnectTimeout",
        "ReadTimeout",
        "ReadError",
        "RemoteProtocolError",
        "ProxyError",
        "Timeout",
    )
    package = type(error).__module__.partition(".")[0]
    names = {kind.__name__ for kind in type(error).__mro__}
    if package in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"):
        return not names.isdisjoint((*kinds, "ConnectionError", "TransportError"))
    return package == "builtins" and isinstance(error, (ConnectionError, TimeoutError))


def _first_line(error: BaseException) -> str:
    return ((str(error).strip().splitlines() or [""])[0] or type(error).__name__)[:200]
