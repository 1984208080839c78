"""A BitNet checkpoint in transformers in float32, with transformers' own ternary layers."""

from __future__ import annotations

from pathlib import Path

import torch


def load_bitnet(folder: Path) -> torch.nn.Module:
    """A BitNetForCausalLM in float32 with eager attention, packed or from master weights, of any tied form.

    It is built by hand because `from_pretrained` wants accelerate for a BitNet checkpoint.
    """
    from safetensors.torch import load_file
    from transformers import BitNetConfig, BitNetForCausalLM
    from transformers.integrations.bitnet import WeightQuant, replace_with_bitnet_linear, unpack_weights
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import BitNetQuantConfig

    # transformers wraps what quantises and unpacks in torch.compile, which would want a C++ compiler and reorder sums.
    torch.compiler.set_stance("force_eager")
    config = BitNetConfig.from_pretrained(folder, attn_implementation="eager")
    quantization = BitNetQuantConfig.from_dict(config.quantization_config)
    del config.quantization_config
    model = BitNetForCausalLM(config).eval()
    online, quantization.quantization_mode = quantization.quantization_mode == "online", "offline"
    kept = HfQuantizer.get_modules_to_not_convert(model, quantization.modules_to_not_convert)
    replace_with_bitnet_linear(model, kept, quantization)

    state = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    for name, value in list(state.items()):
        if online and "_proj.weight" in name:  # as for a model that runs in the type of its master weights
            state[name], state[f"{name}_scale"] = WeightQuant.apply(value).float(), torch.ones(1)
        elif value.dtype != torch.uint8:
            state[name] = value.float()
        elif quantization.linear_class == "autobitlinear":  # a BitLinear unpacks its weights itself, at every call
            state[name] = unpack_weights(value, dtype=torch.float32)
    # Assigned, since the ternary layers are on the meta device as yet.
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model
