"""`calibrate`: from a package and a text to settings in the package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgerun.attention.settings import Setting
from edgerun.calibration.journal import Journal
from edgerun.calibration.search import Policy, Search
from edgerun.calibration.store import write_settings
from edgerun.errors import OptionError
from edgerun.measure.evaluate import started, starting_token
from edgerun.model import Model
from edgerun.package.config import read_config, weights
from edgerun.package.reader import CONFIG
from edgerun.progress import Progress, silent

CONTEXT = 4096
"""Tokens that are calibrated with where the user says nothing."""
LEAST = 64
POLICIES: tuple[Policy, ...] = ("deltallm", "delta", "both")
JOURNAL = "calibration.partial.json"
VERSION = 2
"""The version of what a journal holds; raised when the search changes."""


def calibrate(
    folder: str | Path,
    text: str,
    *,
    budget_kl: float,
    context: int | None = None,
    policies: Sequence[Policy] = POLICIES,
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Setting]:
    """Finds settings for a package's attention within ``budget_kl`` nats a token and writes them into the package.

    text: prose of at least twice ``context`` tokens (default: CONTEXT, or what model and text have). It is searched in
    its first half; costs are measured on its second. Activations are 16 bits wide meanwhile, so that only attention's
    own cost is measured. Partial results lie in the package's folder and are used again by the same call.
    Raises OptionError for a budget or a text that makes no sense, and what ``edgerun.load`` raises.
    """
    root = Path(folder)
    check_budget(budget_kl)
    config = read_config(root / CONFIG)
    most = min(config.context_length, context or CONTEXT)
    if context is not None and not LEAST <= context <= config.context_length:
        raise OptionError(
            f"the context is {context}; it must be {LEAST} to {config.context_length}, this model's limit"
        )
    with Model(root, threads=threads, context=most, compute="int16") as model:
        tokens = model.tokenizer.encode(text, parse_special=False)
        length = min(most, len(tokens) // 2)
        if length < (context or LEAST):
            raise OptionError(
                f"the text has {len(tokens)} tokens; {2 * (context or LEAST)} are needed, half to search and half to "
                "measure: give a longer text, or a smaller context"
            )
        middle = len(tokens) // 2
        bos = starting_token(model.tokenizer)
        searched, held = (started(tokens[at : at + length], bos) for at in (0, middle))
        purpose = {
            "version": VERSION,
            "weights": weights(config),
            "quantisation": config.quantisation,
            "tokens": hashlib.sha256(repr((searched, held)).encode()).hexdigest(),
        }
        journal = Journal(root / JOURNAL, purpose)
        search = Search(model, searched, held, journal, progress)
        found = [setting for policy in policies for setting in search.settings(policy, budget_kl)]
    write_settings(root, found)
    journal.close()
    return found


def check_budget(budget_kl: float) -> None:
    """Raises OptionError for a budget, nats a token, that makes no sense."""
    if not 0 < budget_kl < 100:
        raise OptionError(f"the budget is {budget_kl} nats a token; it must be above 0, such as 0.02")
