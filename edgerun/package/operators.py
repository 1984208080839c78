"""The operators of domain `edgerun`: what a package's graph may use, and what each means in standard ONNX.

Each operator is in the file as a model-local function over ONNX opset 23, so that any ONNX runtime can run a package;
edgerun itself runs its own kernels and uses only the signatures below. The function bodies are part of format
version 1: a package is refused if its bodies differ (`fingerprint`), so a change of meaning needs a new version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onnx import FunctionProto

DOMAIN = "edgerun"
DOMAIN_VERSION = 1
OPSET = 23
IR_VERSION = 11


class OperatorSpec(NamedTuple):
    """The signature of one operator.

    inputs, outputs: formal names in order; all are required.  attributes: name -> "int" or "float"; all are required.
    weights: the weight format (see edgerun.package.layout) whose tensors are the last inputs, or None.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, str]
    weights: str | None = None


_MATRIX = {"N": "int", "K": "int"}
_WEIGHTS = {
    "Q4": ("q4", ("q", "d")),
    "Q4M": ("q4m", ("q", "d", "m")),
    "Q8": ("q8", ("q", "d")),
    "Q6K": ("q6k", ("q", "s", "d")),
    "F32": ("f32", ("w",)),
}

OPERATORS: dict[str, OperatorSpec] = {
    spec.name: spec
    for spec in (
        *(OperatorSpec(f"Embed{s}", ("input_ids", *p), ("x",), _MATRIX, f) for s, (f, p) in _WEIGHTS.items()),
        *(OperatorSpec(f"Linear{s}", ("x", *p), ("y",), _MATRIX, f) for s, (f, p) in _WEIGHTS.items()),
        OperatorSpec("BitLinear", ("x", "q", "d"), ("y",), _MATRIX, "ternary"),
        OperatorSpec("SparseBitLinear", ("x", "q", "d"), ("y",), _MATRIX, "ternary_columns"),
        OperatorSpec("TripleBitLinear", ("x", "q", "d"), ("y",), _MATRIX, "ternary_triples"),
        OperatorSpec("RotaryCosSin", ("position_ids", "inv_freq"), ("cos", "sin"), {}),
        OperatorSpec("CausalMask", ("position_ids", "past_key"), ("mask",), {}),
        OperatorSpec(
            "Attention",
            ("q", "k", "v", "cos", "sin", "mask", "past_key", "past_value"),
            ("y", "present_key", "present_value"),
            {"n_heads": "int", "n_kv_heads": "int", "head_dim": "int", "scale": "float"},
        ),
        OperatorSpec(
            "QKNormAttention",
            ("q", "k", "v", "q_norm", "k_norm", "cos", "sin", "mask", "past_key", "past_value"),
            ("y", "present_key", "present_value"),
            {"n_heads": "int", "n_kv_heads": "int", "head_dim": "int", "scale": "float", "epsilon": "float"},
        ),
        OperatorSpec("SwiGLU", ("gate", "up"), ("y",), {}),
        OperatorSpec("SquaredReLU", ("gate", "up"), ("y",), {}),
    )
}

FINGERPRINTS = {
    "EmbedQ4": "7aecf23baa0768a00ab834bf90d2e666",
    "EmbedQ4M": "7351b77040a19264ddfd818fffb51bef",
    "EmbedQ8": "22e38e0e5fff6d23b9a6f489524c82dc",
    "EmbedQ6K": "f5a181f589be3d00bccba9dea16aa0a0",
    "EmbedF32": "7a8f2c95a50604a086859bc50c73dd12",
    "LinearQ4": "c2a77fd422c55635b0ba7ac0b9b0ca72",
    "LinearQ4M": "1b8c2292d746c02a5f4226663f2c49cc",
    "LinearQ8": "b6cd2552cd55c9a673903148213f07ce",
    "LinearQ6K": "7caa660e0fbf8e5a4834c79066da9bc4",
    "LinearF32": "d8c67b5e22e18fe700cbf7159956f20c",
    "BitLinear": "de80fb81d70759cb2a319e129953ff04",
    "SparseBitLinear": "53a149181f4ae84c4df6c0878ec2762d",
    "TripleBitLinear": "9ec5fb2ccfccb213cd788c390e3415c6",
    "RotaryCosSin": "d9dd59db631c4a0acfeba04b0baa3465",
    "CausalMask": "b51337256d82ba2224dc56d99a80ce25",
    "Attention": "25be848dc19ec7013fa8ee873f95eac9",
    "QKNormAttention": "1b754c5f7f2ce64495e2f4f01afe3378",
    "SwiGLU": "7f7d6c8fc341e4861775b75a9eb4e8e1",
    "SquaredReLU": "893c7f5a742c2ba8360f871f17f8f044",
}
"""What `fingerprint` says of each function of format version 1: reading a package needs no parser."""

_EMBED = {fmt: f"Embed{suffix}" for suffix, (fmt, _) in _WEIGHTS.items()}
_LINEAR = {fmt: f"Linear{suffix}" for suffix, (fmt, _) in _WEIGHTS.items()} | {
    "ternary": "BitLinear",
    "ternary_columns": "SparseBitLinear",
    "ternary_triples": "TripleBitLinear",
}
ATTENTIONS = ("Attention", "QKNormAttention")
EMBEDS, LINEARS, GATES = tuple(_EMBED.values()), tuple(_LINEAR.values()), ("SwiGLU", "SquaredReLU")
"""Operators of which one stands in a place of the graph."""


def embed_operator(fmt: str) -> str:
    """The operator that embeds with weights of format `fmt` ("q4" -> "EmbedQ4")."""
    return _EMBED[fmt]


def linear_operator(fmt: str) -> str:
    """The operator that multiplies by weights of format `fmt` ("q4m" -> "LinearQ4M")."""
    return _LINEAR[fmt]


def functions(names: Iterable[str] | None = None) -> list[FunctionProto]:
    """The model-local functions of the named operators (default: all), in the order of OPERATORS."""
    from onnx import parser

    wanted = set(OPERATORS if names is None else names)
    if unknown := wanted - OPERATORS.keys():
        raise ValueError(f"unknown operators: {', '.join(sorted(unknown))}")
    return [parser.parse_function(source(name)) for name in OPERATORS if name in wanted]


def source(name: str) -> str:
    """The function of one operator in ONNX's textual syntax."""
    spec = OPERATORS[name]
    attributes = f" <{', '.join(spec.attributes)}>" if spec.attributes else ""
    signature = f"{name}{attributes} ({', '.join(spec.inputs)}) => ({', '.join(spec.outputs)})"
    return f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n{signature} {{{_body(name)}}}'


def fingerprint(function: FunctionProto) -> str:
    """A digest of what a function computes: equal however an ONNX library orders or annotates it in the file."""
    lines = [
        f"{function.domain}::{function.name}({','.join(function.input)})->({','.join(function.output)})",
        f"attributes {sorted(function.attribute)} defaults {len(function.attribute_proto)}",
        f"opsets {sorted((o.domain, o.version) for o in function.opset_import)}",
    ]
    for node in function.node:
        lines.append(f"{node.domain}::{node.op_type}({','.join(node.input)})->({','.join(node.output)})")
        for a in sorted(node.attribute, key=lambda a: a.name):
            # a body holds no tensors and no graphs; a count of them tells if one was put in
            foreign = len(a.tensors) + len(a.graphs) + sum(map(a.HasField, ("t", "g", "sparse_tensor", "tp")))
            plain = (a.i, a.f, bytes(a.s), list(a.ints), list(a.floats), list(a.strings), foreign)
            lines.append(f"  {a.name} type {a.type} reference {a.ref_attr_name!r} {plain}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _body(name: str) -> str:
    for suffix, (fmt, _) in _WEIGHTS.items():
        if name == f"Linear{suffix}":
            return {"f32": _LINEAR_F32, "q6k": _LINEAR_Q6K}.get(fmt) or _linear(fmt)
        if name == f"Embed{suffix}":
            return {"f32": _EMBED_F32, "q6k": _EMBED_Q6K}.get(fmt) or _embed(fmt)
    return _BODIES[name]


def _nibbles(packed: str, axis: int) -> str:
    """`packed` bytes [..., 4] -> `halves` [..., 2, 4] with the new axis at `axis`: low nibbles, then high nibbles."""
    return f"""
    fifteen_i = Constant <value_ints = [15]> ()
    fifteen = Cast <to = 2> (fifteen_i)
    four_i = Constant <value_ints = [4]> ()
    four = Cast <to = 2> (four_i)
    low = BitwiseAnd({packed}, fifteen)
    high = BitShift <direction = "RIGHT"> ({packed}, four)
    half_axis = Constant <value_ints = [{axis}]> ()
    low_half = Unsqueeze(low, half_axis)
    high_half = Unsqueeze(high, half_axis)
    halves = Concat <axis = {axis}> (low_half, high_half)"""


def _pairs(packed: str, axis: int) -> str:
    """`packed` bytes [..., 4] -> `pairs` [..., 4, 4] with the new axis at `axis`: two bits each, the lowest first."""
    shifts = "".join(
        f"""
    shift_{i}i = Constant <value_ints = [{2 * i}]> ()
    shift_{i} = Cast <to = 2> (shift_{i}i)
    moved_{i} = BitShift <direction = "RIGHT"> ({packed}, shift_{i})
    part_{i} = BitwiseAnd(moved_{i}, three)
    pair_{i} = Unsqueeze(part_{i}, pair_axis)"""
        for i in range(4)
    )
    return f"""
    three_i = Constant <value_ints = [3]> ()
    three = Cast <to = 2> (three_i)
    pair_axis = Constant <value_ints = [{axis}]> (){shifts}
    pairs = Concat <axis = {axis}> (pair_0, pair_1, pair_2, pair_3)"""


def _six_bit_lines(packed: str, axis: int) -> str:
    """`packed` bytes with six lines at `axis` -> `lows` (four of them) and `highs` (two)."""
    return f"""
    line_axis = Constant <value_ints = [{axis}]> ()
    line_0 = Constant <value_ints = [0]> ()
    low_lines = Constant <value_ints = [1, 2, 4, 5]> ()
    high_lines = Constant <value_ints = [0, 3]> ()
    lows = Gather <axis = {axis}> ({packed}, low_lines)
    highs = Gather <axis = {axis}> ({packed}, high_lines)"""


def _six_bit_numbers(low: str, high: str) -> str:
    """Nibbles and pairs -> `numbers` float32, -32 to 31, of the shape `half_shape`."""
    return f"""
    low_grouped = Reshape({low}, half_shape)
    high_grouped = Reshape({high}, half_shape)
    low_numbers = Cast <to = 1> (low_grouped)
    high_numbers = Cast <to = 1> (high_grouped)
    sixteen = Constant <value_float = 16.0> ()
    thirty_two = Constant <value_float = 32.0> ()
    high_scaled = Mul(high_numbers, sixteen)
    codes = Add(low_numbers, high_scaled)
    numbers = Sub(codes, thirty_two)"""


def _scaled(fmt: str) -> str:
    """`grouped` integers -> `dense` float32, by `scale` (and `minimum`) that broadcast over a group."""
    lines = "\n    numbers = Cast <to = 1> (grouped)"
    if fmt == "q4":
        lines += "\n    eight = Constant <value_float = 8.0> ()\n    centred = Sub(numbers, eight)"
    product = f"Mul({'centred' if fmt == 'q4' else 'numbers'}, scale)"
    if fmt != "q4m":
        return f"{lines}\n    dense = {product}"
    return f"{lines}\n    scaled = {product}\n    dense = Add(scaled, minimum)"


def _cut(size: str, result: str) -> str:
    """`padded` -> `result` without the padding; size: "k1, n1" of columns by rows, "n1, k1" of rows by columns."""
    return f"""
    n = Constant <value_int: int = @N> ()
    k = Constant <value_int: int = @K> ()
    origin = Constant <value_ints = [0, 0]> ()
    first = Constant <value_ints = [0]> ()
    n1 = Unsqueeze(n, first)
    k1 = Unsqueeze(k, first)
    size = Concat <axis = 0> ({size})
    {result} = Slice(padded, origin, size)"""


_WEIGHT = _cut("k1, n1", "weight")


def _linear(fmt: str) -> str:
    """Everything but the MatMul depends on weights only: a runtime folds it into one [K, N] constant."""
    if fmt == "q8":
        columns = "columns = Transpose <perm = [1, 2, 4, 0, 3]> (q)"  # [G, 8, 4, Nb, 16]
    else:
        columns = (
            _nibbles("q", 3) + "\n    columns = Transpose <perm = [1, 2, 3, 5, 0, 4]> (halves)"
        )  # [G, 4, 2, 4, Nb, 16]
    minimum = _group_scale("m", "minimum") if fmt == "q4m" else ""
    return f"""
    {columns}
    group_shape = Constant <value_ints = [0, 32, -1]> ()
    grouped = Reshape(columns, group_shape)
    scale_shape = Constant <value_ints = [0, 1, -1]> (){_group_scale("d", "scale")}{minimum}{_scaled(fmt)}
    padded = Flatten <axis = 2> (dense){_WEIGHT}
    y = MatMul(x, weight)
"""


def _group_scale(stored: str, name: str) -> str:
    """[Nb, G, 16] float16 -> [G, 1, Nb*16] float32."""
    return f"""
    {name}_t = Transpose <perm = [1, 0, 2]> ({stored})
    {name}_r = Reshape({name}_t, scale_shape)
    {name} = Cast <to = 1> ({name}_r)"""


def _embed(fmt: str) -> str:
    """Rows are gathered while still quantised, so that no runtime keeps a dense table beside the output head's."""
    if fmt == "q8":
        table, unpacked = "table_r = Transpose <perm = [0, 3, 1, 2, 4]> (q)", "halves = Identity(taken)"
    else:
        # [batch, sequence, G, 4, 4] bytes -> [..., G, 4, 2, 4]
        table = "table_r = Transpose <perm = [0, 3, 1, 2, 4]> (q)"
        unpacked = """chunk_shape = Constant <value_ints = [0, 0, -1, 4, 4]> ()
    chunks = Reshape(taken, chunk_shape)""" + _nibbles("chunks", 4)
    minimum = _row_scale("m", "minimum") if fmt == "q4m" else ""
    return f"""
    {table}
    table_p = Flatten <axis = 2> (table_r)
    n = Constant <value_int: int = @N> ()
    k = Constant <value_int: int = @K> ()
    first = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [2]> ()
    n1 = Unsqueeze(n, first)
    k1 = Unsqueeze(k, first)
    table = Slice(table_p, first, n1, first)
    taken = Gather <axis = 0> (table, input_ids)
    {unpacked}
    group_shape = Constant <value_ints = [0, 0, -1, 32]> ()
    grouped = Reshape(halves, group_shape)
    group_axis = Constant <value_ints = [3]> (){_row_scale("d", "scale")}{minimum}{_scaled(fmt)}
    row_shape = Constant <value_ints = [0, 0, -1]> ()
    padded = Reshape(dense, row_shape)
    x = Slice(padded, first, k1, last)
"""


def _row_scale(stored: str, name: str) -> str:
    """[Nb, G, 16] float16 -> [batch, sequence, G, 1] float32, the rows of input_ids."""
    return f"""
    {name}_t = Transpose <perm = [0, 2, 1]> ({stored})
    {name}_p = Flatten <axis = 2> ({name}_t)
    {name}_g = Gather <axis = 0> ({name}_p, input_ids)
    {name}_f = Cast <to = 1> ({name}_g)
    {name} = Unsqueeze({name}_f, group_axis)"""


_LINEAR_F32 = f"""
    columns = Transpose <perm = [1, 0, 2]> (w)
    padded = Flatten <axis = 1> (columns){_WEIGHT}
    y = MatMul(x, weight)
"""

# [Nb, G, lines, parts, 16, 4] -> [G, lines, parts, 4, Nb, 16]: columns first, rows last
_LINEAR_Q6K = f"""{_six_bit_lines("q", 2)}{_nibbles("lows", 3)}{_pairs("highs", 3)}
    low_columns = Transpose <perm = [1, 2, 3, 5, 0, 4]> (halves)
    high_columns = Transpose <perm = [1, 2, 3, 5, 0, 4]> (pairs)
    half_shape = Constant <value_ints = [0, 2, 16, -1]> (){_six_bit_numbers("low_columns", "high_columns")}
    factor_columns = Transpose <perm = [1, 2, 0, 3]> (s)
    factor_shape = Constant <value_ints = [0, 2, 1, -1]> ()
    factor_grouped = Reshape(factor_columns, factor_shape)
    factors = Cast <to = 1> (factor_grouped)
    products = Mul(numbers, factors)
    scale_columns = Transpose <perm = [1, 0, 2]> (d)
    scale_shape = Constant <value_ints = [0, 1, -1]> ()
    scale_grouped = Reshape(scale_columns, scale_shape)
    scales = Cast <to = 1> (scale_grouped)
    eight_times = Constant <value_ints = [1, 8, 1]> ()
    scale_each = Expand(scales, eight_times)
    each_shape = Constant <value_ints = [-1, 1, 1]> ()
    all_rows = Shape <start = 2, end = 3> (scales)
    all_shape = Concat <axis = 0> (each_shape, all_rows)
    scale_all = Reshape(scale_each, all_shape)
    n_groups = Shape <start = 1, end = 2> (q)
    scale = Slice(scale_all, line_0, n_groups, line_0)
    dense = Mul(products, scale)
    padded = Flatten <axis = 3> (dense){_WEIGHT}
    y = MatMul(x, weight)
"""

_EMBED_Q6K = f"""
    first = Constant <value_ints = [0]> ()
    table_r = Transpose <perm = [0, 3, 1, 2, 4]> (q)
    table_p = Flatten <axis = 2> (table_r)
    n = Constant <value_int: int = @N> ()
    n1 = Unsqueeze(n, first)
    table = Slice(table_p, first, n1, first)
    taken = Gather <axis = 0> (table, input_ids)
    chunk_shape = Constant <value_ints = [0, 0, -1, 6, 4]> ()
    chunks = Reshape(taken, chunk_shape){_six_bit_lines("chunks", 3)}{_nibbles("lows", 4)}{_pairs("highs", 4)}
    half_shape = Constant <value_ints = [0, 0, -1, 2, 16]> (){_six_bit_numbers("halves", "pairs")}
    factor_t = Transpose <perm = [0, 3, 1, 2]> (s)
    factor_p = Flatten <axis = 2> (factor_t)
    factor_g = Gather <axis = 0> (factor_p, input_ids)
    factor_shape = Constant <value_ints = [0, 0, -1, 2, 1]> ()
    factor_r = Reshape(factor_g, factor_shape)
    factors = Cast <to = 1> (factor_r)
    products = Mul(numbers, factors)
    scale_t = Transpose <perm = [0, 2, 1]> (d)
    scale_p = Flatten <axis = 2> (scale_t)
    scale_g = Gather <axis = 0> (scale_p, input_ids)
    scale_f = Cast <to = 1> (scale_g)
    scales = Unsqueeze(scale_f, line_axis)
    eight_times = Constant <value_ints = [1, 1, 1, 8]> ()
    scale_each = Expand(scales, eight_times)
    all_shape = Constant <value_ints = [0, 0, -1, 1, 1]> ()
    scale_all = Reshape(scale_each, all_shape)
    n_groups = Shape <start = 1, end = 2> (q)
    last = Constant <value_ints = [2]> ()
    scale = Slice(scale_all, line_0, n_groups, last)
    dense = Mul(products, scale)
    row_shape = Constant <value_ints = [0, 0, -1]> ()
    padded = Reshape(dense, row_shape)
    k = Constant <value_int: int = @K> ()
    k1 = Unsqueeze(k, line_0)
    x = Slice(padded, line_0, k1, last)
"""

# int8 by numbers that count from 1, summed in 32 bits: the arithmetic that BitNet models are trained in. Scales come
# one after the other: onnxruntime fuses their product with a following bias in the wrong order.
_TERNARY_PRODUCT = f"""{_WEIGHT}
    one_i = Constant <value_int = 1> ()
    one = Cast <to = 3> (one_i)
    trits = Cast <to = 3> (weight)
    zero_i = Constant <value_int = 0> ()
    zero = Cast <to = 3> (zero_i)
    last = Constant <value_ints = [-1]> ()
    magnitudes = Abs(x)
    measured = ReduceMax <keepdims = 1> (magnitudes, last)
    least = Constant <value_float = 1e-5> ()
    largest = Max(measured, least)
    most = Constant <value_float = 127.0> ()
    inverse = Div(most, largest)
    scaled = Mul(x, inverse)
    rounded = Round(scaled)
    integers = Cast <to = 3> (rounded)
    sums = MatMulInteger(integers, trits, zero, one)
    numbers = Cast <to = 1> (sums)
    step = Div(largest, most)
    by_d = Mul(numbers, d)
    y = Mul(by_d, step)
"""

_BIT_LINEAR = f"""{_pairs("q", 3)}
    columns = Transpose <perm = [1, 2, 3, 5, 0, 4]> (pairs)
    column_shape = Constant <value_ints = [-1]> ()
    n_blocks = Shape <start = 0, end = 1> (q)
    sixteen = Constant <value_ints = [16]> ()
    n_rows = Mul(n_blocks, sixteen)
    all_shape = Concat <axis = 0> (column_shape, n_rows)
    padded = Reshape(columns, all_shape){_TERNARY_PRODUCT}"""

_SPARSE_BIT_LINEAR = f"""{_pairs("q", 2)}
    columns = Transpose <perm = [0, 1, 2, 4, 3, 5]> (pairs)
    padded = Flatten <axis = 1> (columns){_TERNARY_PRODUCT}"""

# [P, M, U, 5, 32]: words of the 32 rows of a unit; then codes [P, M, U, 16, 32], then [P, U, third, code, M, half, row]
_TRIPLE_BIT_LINEAR = f"""
    bytes = Cast <to = 6> (q)
    byte_shape = Constant <value_ints = [0, 0, 0, 5, 32, 2]> ()
    pairs = Reshape(bytes, byte_shape)
    byte_weights_f = Constant <value_ints = [1, 256]> ()
    byte_weights = Cast <to = 6> (byte_weights_f)
    weighted = Mul(pairs, byte_weights)
    byte_axis = Constant <value_ints = [5]> ()
    words = ReduceSum <keepdims = 0> (weighted, byte_axis)
    line_axis = Constant <value_ints = [4]> ()
    word_lines = Unsqueeze(words, line_axis)
    steps_l = Constant <value_ints = [1, 32, 1024]> ()
    steps_i = Cast <to = 6> (steps_l)
    step_axis = Constant <value_ints = [1]> ()
    steps = Unsqueeze(steps_i, step_axis)
    moved = Div(word_lines, steps)
    thirty_two_l = Constant <value_int = 32> ()
    thirty_two = Cast <to = 6> (thirty_two_l)
    fifteen_lines = Mod(moved, thirty_two)
    fifteen_shape = Constant <value_ints = [0, 0, 0, 15, 32]> ()
    fifteen = Reshape(fifteen_lines, fifteen_shape)
    top_l = Constant <value_int = 32768> ()
    top = Cast <to = 6> (top_l)
    bits = Div(words, top)
    bit_weights_l = Constant <value_ints = [1, 2, 4, 8, 16]> ()
    bit_weights_i = Cast <to = 6> (bit_weights_l)
    bit_weights = Unsqueeze(bit_weights_i, step_axis)
    bits_weighted = Mul(bits, bit_weights)
    code_axis = Constant <value_ints = [3]> ()
    last_code = ReduceSum <keepdims = 1> (bits_weighted, code_axis)
    codes = Concat <axis = 3> (fifteen, last_code)
    third_codes = Unsqueeze(codes, code_axis)
    places_l = Constant <value_ints = [1, 3, 9]> ()
    places_i = Cast <to = 6> (places_l)
    place_axes = Constant <value_ints = [1, 2]> ()
    places = Unsqueeze(places_i, place_axes)
    higher = Div(third_codes, places)
    three_l = Constant <value_int = 3> ()
    three = Cast <to = 6> (three_l)
    digits = Mod(higher, three)
    digit_shape = Constant <value_ints = [0, 0, 0, 48, 16, 2]> ()
    by_row = Reshape(digits, digit_shape)
    by_column = Transpose <perm = [0, 2, 3, 1, 5, 4]> (by_row)
    padded = Flatten <axis = 3> (by_column){_TERNARY_PRODUCT}"""

_EMBED_F32 = f"""
    rows = Transpose <perm = [0, 2, 1]> (w)
    padded = Flatten <axis = 2> (rows){_cut("n1, k1", "table")}
    x = Gather <axis = 0> (table, input_ids)
"""

_BODIES = {
    # float32 angles, as transformers computes them
    "RotaryCosSin": """
    axis = Constant <value_ints = [2]> ()
    positions = Cast <to = 1> (position_ids)
    column = Unsqueeze(positions, axis)
    angles = Mul(column, inv_freq)
    cos = Cos(angles)
    sin = Sin(angles)
""",
    # [batch, 1, sequence, past + sequence]; -1e30 rather than -inf: exp of it is exactly 0 and it never makes a NaN
    "CausalMask": """
    past_length = Shape <start = 2, end = 3> (past_key)
    length = Shape <start = 1, end = 2> (position_ids)
    total_1 = Add(past_length, length)
    first = Constant <value_ints = [0]> ()
    total = Squeeze(total_1, first)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    columns = Range(zero, total, one)
    axes = Constant <value_ints = [1, 3]> ()
    rows = Unsqueeze(position_ids, axes)
    visible = LessOrEqual(columns, rows)
    shown = Constant <value_float = 0.0> ()
    hidden = Constant <value_float = -1e30> ()
    mask = Where(visible, shown, hidden)
""",
    "Attention": """
    rotated_q = RotaryEmbedding <interleaved = 0, num_heads: int = @n_heads> (q, cos, sin)
    rotated_k = RotaryEmbedding <interleaved = 0, num_heads: int = @n_kv_heads> (k, cos, sin)
    y, present_key, present_value = Attention
        <q_num_heads: int = @n_heads, kv_num_heads: int = @n_kv_heads, scale: float = @scale>
        (rotated_q, rotated_k, v, mask, past_key, past_value)
""",
    # of every head of q and k an RMSNorm first (Qwen3)
    "QKNormAttention": """
    head = Constant <value_int: int = @head_dim> ()
    first = Constant <value_ints = [0]> ()
    head_1 = Unsqueeze(head, first)
    all_heads = Constant <value_ints = [0, 0, -1]> ()
    head_shape = Concat <axis = 0> (all_heads, head_1)
    q_heads = Reshape(q, head_shape)
    k_heads = Reshape(k, head_shape)
    q_normed = RMSNormalization <axis = -1, epsilon: float = @epsilon, stash_type = 1> (q_heads, q_norm)
    k_normed = RMSNormalization <axis = -1, epsilon: float = @epsilon, stash_type = 1> (k_heads, k_norm)
    q_rows = Reshape(q_normed, all_heads)
    k_rows = Reshape(k_normed, all_heads)
    rotated_q = RotaryEmbedding <interleaved = 0, num_heads: int = @n_heads> (q_rows, cos, sin)
    rotated_k = RotaryEmbedding <interleaved = 0, num_heads: int = @n_kv_heads> (k_rows, cos, sin)
    y, present_key, present_value = Attention
        <q_num_heads: int = @n_heads, kv_num_heads: int = @n_kv_heads, scale: float = @scale>
        (rotated_q, rotated_k, v, mask, past_key, past_value)
""",
    "SwiGLU": """
    sigmoid = Sigmoid(gate)
    silu = Mul(gate, sigmoid)
    y = Mul(silu, up)
""",
    "SquaredReLU": """
    positive = Relu(gate)
    squared = Mul(positive, positive)
    y = Mul(squared, up)
""",
    "BitLinear": _BIT_LINEAR,
    "SparseBitLinear": _SPARSE_BIT_LINEAR,
    "TripleBitLinear": _TRIPLE_BIT_LINEAR,
}
