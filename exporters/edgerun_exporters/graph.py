"""The ONNX graph of a described model: fused operators of the domain `edgerun`, each a function in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgerun.package import operators

from .families import Description, Matrix
from .weights import Weights


class _Builder:
    def __init__(self, description: Description, format_of: Callable[[Matrix], str]) -> None:
        self.description, self.format_of = description, format_of
        self.weights = Weights()
        self.nodes: list[NodeProto] = []
        self.shapes: list[ValueInfoProto] = []
        self.packed: dict[str, tuple[str, list[str]]] = {}

    def matrix(self, matrix: Matrix) -> tuple[str, list[str]]:
        """(format, tensor names); a matrix that is used twice is stored once."""
        if matrix.name not in self.packed:
            kind = self.format_of(matrix)
            self.packed[matrix.name] = kind, self.weights.add_matrix(matrix, kind)
        return self.packed[matrix.name]

    def node(self, op: str, name: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        """Adds a node and returns its first output, by default named as the node."""
        outputs = outputs or [name]
        domain = operators.DOMAIN if op in operators.OPERATORS else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, name: str, matrix: Matrix, output: str | None = None) -> str:
        kind, tensors = self.matrix(matrix)
        op = operators.linear_operator(kind)
        return self.node(op, name, [x, *tensors], [output or name], N=matrix.rows, K=matrix.columns)

    def norm(self, x: str, name: str, weight: str) -> str:
        epsilon = self.description.rms_norm_eps
        return self.node("RMSNormalization", name, [x, weight], axis=-1, epsilon=epsilon, stash_type=1)

    def layer(self, x: str, i: int, rotary: list[str]) -> str:
        layer, at = self.description.layers[i], f"layers.{i}"

        def project(x: str, part: str, role: str) -> str:
            name = f"{at}.{part}.{role}"
            if role in layer.norms:
                own = self.weights.add_vector(f"{name}.norm.weight", layer.norms[role])
                x = self.norm(x, f"{name}.norm", own)
            y = self.linear(x, name, layer.matrices[role])
            if role not in layer.biases:
                return y
            bias = self.weights.add_vector(f"{name}.bias", layer.biases[role])
            return self.node("Add", f"{name}.biased", [y, bias])

        norm_weight = self.weights.add_vector(f"{at}.input_norm.weight", layer.input_norm)
        h = self.norm(x, f"{at}.input_norm", norm_weight)
        q, k, v = (project(h, "attention", role) for role in ("q_proj", "k_proj", "v_proj"))
        # onnxruntime takes a shape of v that it does not know yet for 0, and then refuses what stands behind attention.
        kv = self.description.n_kv_heads * self.description.head_dim
        self.shapes.append(_value(v, TensorProto.FLOAT, ["batch", "sequence", kv]))
        norms = [
            self.weights.add_vector(f"{at}.attention.{role}.weight", vector)
            for role, vector in layer.head_norms.items()
        ]
        a = self.node(
            "QKNormAttention" if norms else "Attention",
            f"{at}.attention",
            [q, k, v, *norms, *rotary, f"past_key_values.{i}.key", f"past_key_values.{i}.value"],
            [f"{at}.attention", f"present.{i}.key", f"present.{i}.value"],
            n_heads=self.description.n_heads,
            n_kv_heads=self.description.n_kv_heads,
            head_dim=self.description.head_dim,
            scale=self.description.attention_scale,
            **({"epsilon": self.description.rms_norm_eps} if norms else {}),
        )
        x = self.node("Add", f"{at}.attention.residual", [x, project(a, "attention", "o_proj")])
        norm_weight = self.weights.add_vector(f"{at}.post_attention_norm.weight", layer.post_attention_norm)
        h = self.norm(x, f"{at}.post_attention_norm", norm_weight)
        g, u = (project(h, "mlp", role) for role in ("gate_proj", "up_proj"))
        gated = self.node(self.description.activation, f"{at}.mlp.{self.description.activation.lower()}", [g, u])
        return self.node("Add", f"{at}.mlp.residual", [x, project(gated, "mlp", "down_proj")])


def build(description: Description, format_of: Callable[[Matrix], str], producer: str) -> tuple[ModelProto, Weights]:
    """The model, its tensors external, and the weights to write beside it.

    Inputs: input_ids, position_ids int64 [batch, sequence]; past_key_values.{i}.key and .value float32
    [batch, n_kv_heads, past, head_dim], keys after RoPE. Outputs: logits float32 [batch, sequence, vocab];
    present.{i}.key and .value float32 [batch, n_kv_heads, past+sequence, head_dim].
    """
    d = description
    b = _Builder(d, format_of)
    kind, tensors = b.matrix(d.embedding)
    x = b.node(operators.embed_operator(kind), "embedding", ["input_ids", *tensors], N=d.vocab_size, K=d.hidden_size)
    inv_freq = b.weights.add_vector("rope.inv_freq", d.inv_freq)
    b.node("RotaryCosSin", "rope", ["position_ids", inv_freq], ["rope.cos", "rope.sin"])
    b.node("CausalMask", "mask", ["position_ids", "past_key_values.0.key"])
    for i in range(len(d.layers)):
        x = b.layer(x, i, ["rope.cos", "rope.sin", "mask"])
    h = b.norm(x, "final_norm", b.weights.add_vector("final_norm.weight", d.final_norm))
    b.linear(h, "output", d.output or d.embedding, "logits")
    b.weights.arrange()

    inputs = [_value(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "position_ids")]
    outputs = [_value("logits", TensorProto.FLOAT, ["batch", "sequence", d.vocab_size])]
    for i in range(len(d.layers)):
        for part in ("key", "value"):
            shape: list[str | int] = ["batch", d.n_kv_heads, "past", d.head_dim]
            inputs.append(_value(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape))
            shape = ["batch", d.n_kv_heads, "past+sequence", d.head_dim]
            outputs.append(_value(f"present.{i}.{part}", TensorProto.FLOAT, shape))
    used = {node.op_type for node in b.nodes if node.domain == operators.DOMAIN}
    model = helper.make_model(
        helper.make_graph(
            b.nodes,
            d.family,
            inputs,
            outputs,
            [place.proto() for place in b.weights.places.values()],
            value_info=b.shapes,
        ),
        functions=operators.functions(used),
        opset_imports=[
            helper.make_opsetid("", operators.OPSET),
            helper.make_opsetid(operators.DOMAIN, operators.DOMAIN_VERSION),
        ],
        ir_version=operators.IR_VERSION,
        producer_name=producer,
    )
    return model, b.weights


def _value(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
