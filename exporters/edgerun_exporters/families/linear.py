"""Where the weights of a linear layer lie, and whether they are ternary."""

from __future__ import annotations

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint, TensorInfo
from ..ternary import TRITS_PER_BYTE, MasterWeights, PackedTrits, Ternary, TernaryValues
from .family import Family


def find_weight(
    checkpoint: Checkpoint, family: Family, stored: str, rows: int, columns: int
) -> tuple[TensorInfo, Ternary | None]:
    """The tensor of the linear layer `stored` [rows, columns], and where its trits come from if the model has ternary
    weights there. CheckpointError if it is missing or has another shape."""
    name = stored + ".weight"
    if checkpoint.format == "gguf":
        info = checkpoint.info(name, (rows, columns))
        scale = stored + ".scale" if stored + ".scale" in checkpoint.tensors else None
        values = TernaryValues(info, scale)
        if family.ternary or info.format == "I2_S":
            return info, values
        # A file of any other model may have been squeezed into these formats, whose scales then differ.
        return info, values if info.format in ("TQ1_0", "TQ2_0") and values.is_ternary(checkpoint) else None
    config = checkpoint.metadata
    quantised = config.get("quantization_config") or {}
    if not quantised and config.get("weight_bits") != 1:
        return checkpoint.info(name, (rows, columns)), None
    kept = quantised.get("modules_to_not_convert") or ()
    if any(stored == module or stored.endswith(f".{module}") or f"{module}." in stored for module in kept):
        return checkpoint.info(name, (rows, columns)), None
    found = checkpoint.tensors.get(name)
    if found is not None and found.format == "U8":
        if rows % TRITS_PER_BYTE:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} packs {TRITS_PER_BYTE} rows in one, but has {rows}: "
                "the checkpoint contradicts itself; download it again"
            )
        info = checkpoint.info(name, (rows // TRITS_PER_BYTE, columns))
        inverse = quantised.get("linear_class", "bitlinear") == "bitlinear"
        return info, PackedTrits(info, stored + ".weight_scale", inverse)
    info = checkpoint.info(name, (rows, columns))
    if quantised.get("quantization_mode", "offline") == "online" or not quantised:
        return info, MasterWeights(info)
    return info, TernaryValues(info, stored + ".weight_scale")
