"""Loads the kernels: an object file becomes callable functions, through llvmlite alone: no Numba, no linker, no JIT."""

import contextlib
import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..machine import architecture
from ..targets import TARGETS, usable
from . import objects

INT, FLOAT = ctypes.c_int64, ctypes.c_double
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "team_worker": (INT, INT, INT),
    "team_start": (INT, INT, INT, INT, INT, INT),
    "team_finish": (None, INT),
    "team_stop": (INT, INT, INT),
    "argmax": (INT, INT, INT),
    "exp_sum": (FLOAT, INT, INT),
    "penalize": (None, INT, INT, INT, INT, FLOAT, FLOAT, FLOAT),
    "sample": (INT, INT, INT, INT, FLOAT, INT, FLOAT, FLOAT, FLOAT),
}
"""Name -> (result, arguments) of the functions that Python calls; the tests call op kernels by ``Kernels.op`` too."""


class KernelError(Exception):
    """No kernels can be had on this machine: the message says why and what to do."""


class Kernels:
    """The loaded functions of one instruction set; attributes are named as in SIGNATURES. Thread-safe: ctypes calls
    release the GIL."""

    team_worker: Callable[[int, int], int]
    team_start: Callable[[int, int, int, int, int], int]
    team_finish: Callable[[int], None]
    team_stop: Callable[[int, int], int]
    argmax: Callable[[int, int], int]
    exp_sum: Callable[[int, int], float]
    penalize: Callable[[int, int, int, int, float, float, float], None]
    sample: Callable[[int, int, int, float, int, float, float, float], int]

    def __init__(self, isa: str, code: bytes) -> None:
        import llvmlite.binding as llvm

        if objects.architecture_of(code) != architecture():  # LLVM would end the process
            raise KernelError(f"the kernel object for {isa} is made for {objects.architecture_of(code)}")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        if sys.platform == "darwin":
            _sleep_by_yielding()
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self.isa = isa
        self._engine = engine  # owns the code
        for name, (result, *args) in SIGNATURES.items():
            setattr(self, name, self._function(name, result, *args))
        _unmap_compiler()

    def _function(self, name: str, result: Any, *args: Any) -> Any:
        address = self._engine.get_function_address(objects.symbol(name))
        if not address:
            raise KernelError(f"kernel object for {self.isa}: no function '{name}'; reinstall edgerun")
        return ctypes.CFUNCTYPE(result, *args)(address)

    def op(self, name: str) -> Callable[[int, int, int, int], None]:
        """The kernel of one op: ``(op record, run record, thread, number of threads)``."""
        function: Callable[[int, int, int, int], None] = self._function(name, None, INT, INT, INT, INT)
        return function


def _sleep_by_yielding() -> None:
    """Linux' futex is its own; on macOS, who would sleep or wake lets others run instead. The kernels find the C
    library's function under the name of the system call, and it has no use for their arguments."""
    import llvmlite.binding as llvm

    function = ctypes.CDLL(None).sched_yield
    llvm.add_symbol("syscall", ctypes.cast(function, ctypes.c_void_p).value)


def _unmap_compiler() -> None:
    """Gives some 40 MiB of memory back: LLVM's machine code and tables, which have done their work. Only what is mapped
    from the file and was never written, so that whatever is touched again is simply mapped again."""
    dont_need = 4
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):
        madvise = ctypes.CDLL(None).madvise
        mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        for mapping in filter(None, mappings):
            place, rights, *_, name = mapping.partition("\n")[0].split(maxsplit=5)
            kib = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB$", mapping, re.MULTILINE)}
            # Relocated tables are read-only by now, but no longer what the file holds. Emulators say 0 of all.
            unwritten = kib["Rss"] > 0 and kib["Private_Dirty"] == kib["Swap"] == 0
            if name.endswith("libllvmlite.so") and (rights == "r-xp" or (rights == "r--p" and unwritten)):
                start, end = (int(part, 16) for part in place.split("-"))
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), dont_need)


def _build_into(folder: Path, isa: str) -> str:
    """Compiles one object in a process of its own: from the portable bitcode, or (a developer's changed sources) from
    the sources with numba. Gives what went wrong, or nothing."""
    if objects.is_current(objects.INSTALLED / objects.PORTABLE):
        module, about = "edgerun_kernels.build.emit", "about 10 s"
    elif _have_numba():
        module, about = "edgerun_kernels.build", "about a minute"
    else:
        return "numba is not installed to compile one"
    if sys.stderr.isatty():
        _say(f"compiling the kernels for this processor ({isa}), once ({about})")
    paths = [str(objects.HERE.parent), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-m", module, "--out", str(folder), "--isa", isa]
    result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
    return f"compiling one failed: {lines[-1]}"


def _have_numba() -> bool:
    from importlib.util import find_spec

    return find_spec("numba") is not None


@cache
def kernels(isa: str | None = None) -> Kernels:
    """The kernels for ``isa`` ($EDGERUN_ISA, or the best that this CPU can run). Raises KernelError.

    Looks beside the package, then in the cache; what neither has in a current version is compiled once into the cache.
    Where that cannot be done, the next best instruction set is taken, and a line says so.
    """
    isa = isa or os.environ.get("EDGERUN_ISA") or None
    names = [target.name for target in usable()]
    if isa is not None and isa not in names:
        raise KernelError(
            f"instruction set '{isa}' cannot run on this CPU; it can run {', '.join(names) or 'none'} "
            f"(known: {', '.join(target.name for target in TARGETS)})"
        )
    wanted = [isa] if isa else names
    problem = ""
    for name in wanted:
        try:
            found = _find(name)
        except KernelError as error:
            problem = problem or str(error)
            continue
        if problem:
            _say(f"no kernels for {wanted[0]}: {problem}; those for {name} are taken")
        return found
    if not wanted:
        raise KernelError(f"edgerun has no kernels for {architecture()} CPUs; it knows x86_64 and aarch64")
    raise KernelError(
        f"no kernel object for {wanted[0]} in {objects.INSTALLED} or {_cache_folder()}, and {problem}; "
        "reinstall edgerun, or 'pip install numba' and start again"
    )


def _find(name: str) -> Kernels:
    """The kernels of one instruction set: installed, from the cache, or compiled. Raises KernelError."""
    places = [folder / objects.file_name(name) for folder in (objects.INSTALLED, _cache_folder())]
    problem = ""
    for path in places:
        if objects.is_damaged(path):
            _say(f"{path} is damaged and is not used")
        code = objects.read(path)
        if code is not None:
            try:
                return Kernels(name, code)
            except (KernelError, RuntimeError) as error:  # RuntimeError: LLVM cannot read it
                problem = str(error)
                _say(f"{path} is not used: {problem}")
    problem = _build_into(_cache_folder(), name) or problem
    code = objects.read(places[-1])
    if code is None:
        raise KernelError(problem)
    return Kernels(name, code)


def _cache_folder() -> Path:
    return objects.cache_root() / "kernels" / objects.source_hash()


def _say(what: str) -> None:
    print(f"edgerun: {what}", file=sys.stderr, flush=True)
