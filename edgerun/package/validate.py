"""What every model.onnx has alike: the operator sets, and the functions that give edgerun's operators their meaning.

What the graph computes with them is checked where it is read: see ``edgerun.program.build``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgerun.package.operators import DOMAIN, DOMAIN_VERSION, FINGERPRINTS, OPSET, fingerprint
from edgerun.package.problem import damaged, quoted

if TYPE_CHECKING:
    from onnx import ModelProto


def check_model(path: Path, model: ModelProto) -> None:
    """Operator set versions, and the functions: exactly those of edgerun, for every operator that is used."""
    if not model.HasField("graph") or not model.graph.node:
        raise damaged(path, "holds no graph")
    opsets = {imported.domain or "": imported.version for imported in model.opset_import}
    if opsets != {"": OPSET, DOMAIN: DOMAIN_VERSION} or len(model.opset_import) != 2:
        shown = ", ".join(f"{quoted(domain)} {version}" for domain, version in sorted(opsets.items()))
        what = f"uses operator sets {shown or 'without names'}, expected '' {OPSET} and '{DOMAIN}' {DOMAIN_VERSION}"
        raise damaged(path, what)
    known = set()
    for function in model.functions:
        if function.domain != DOMAIN or function.name not in FINGERPRINTS or function.overload:
            raise damaged(path, f"function {quoted(f'{function.domain}.{function.name}')} is unknown")
        if function.name in known:
            raise damaged(path, f"function {quoted(function.name)} is there twice")
        if fingerprint(function) != FINGERPRINTS[function.name]:
            raise damaged(path, f"function {quoted(function.name)} is not the one of format version 1 (edited?)")
        known.add(function.name)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in FINGERPRINTS and node.op_type not in known:
            raise damaged(path, f"function {quoted(node.op_type)}, which node {quoted(node.name)} uses, is missing")
