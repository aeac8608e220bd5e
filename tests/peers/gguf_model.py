"""SmolLM2 from its GGUF as a plain torch model, without the quantisation wrapper that transformers leaves on it."""
import os

import torch
from transformers import AutoModelForCausalLM


def load(gguf, dtype):
    folder, name = os.path.split(os.path.abspath(gguf))
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    if hasattr(quantized.config, "quantization_config"):
        del quantized.config.quantization_config
    model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.config.use_cache = False
    return model.to(dtype)
