"""A small correct run for test_hostile to damage: model, tokenizer, template, rows, config. Files are written with Python's own
means, so that what is refused was not made by the program under test."""
import json, math, os, random, shutil, struct

from training import DATA, folder

VOCABULARY, HIDDEN, HEADS, FEED_FORWARD = 1440, 32, 2, 64
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
          "intermediate_size": FEED_FORWARD, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
          "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
          "tie_word_embeddings": True, "torch_dtype": "float32"}


def tensors(hidden=HIDDEN):
    """Name to (shape, values)."""
    rng = random.Random(7)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    layer = "model.layers.0."
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[layer + name + ".weight"] = (hidden,)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        shapes[layer + "self_attn." + name + ".weight"] = (hidden, hidden)
    for name in ("gate_proj", "up_proj"):
        shapes[layer + "mlp." + name + ".weight"] = (FEED_FORWARD, hidden)
    shapes[layer + "mlp.down_proj.weight"] = (hidden, FEED_FORWARD)
    return {name: (shape, [1.0] * hidden if len(shape) == 1 else [rng.gauss(0, 0.1) for _ in range(shape[0] * shape[1])])
            for name, shape in sorted(shapes.items())}


def write_safetensors(path, of):
    header, data = {}, b""
    for name, (shape, values) in of.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_deep_model(at, layers, hidden=256, feed_forward=1024):
    """A model of many layers in bf16, all of the same few thousand values: large, and soon written. Its bytes of weights."""
    rng = random.Random(3)
    piece = b"".join(struct.pack("<f", rng.gauss(0, 0.05))[2:] for _ in range(4096))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (hidden,)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (hidden, hidden)
        for name, shape in (("gate", (feed_forward, hidden)), ("up", (feed_forward, hidden)), ("down", (hidden, feed_forward))):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = shape
    header, size = {}, 0
    for name, shape in shapes.items():
        begin, size = size, size + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, size]}
    text = json.dumps(header).encode()
    write_json(os.path.join(at, "config.json"), dict(CONFIG, num_hidden_layers=layers, hidden_size=hidden,
                                                     intermediate_size=feed_forward, torch_dtype="bfloat16"))
    with open(os.path.join(at, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for begin in range(0, size, len(piece)):
            file.write(piece[:size - begin])
    return size


def write_gguf(path, of):
    """A GGUF of version 3 with the keys of a llama model, without a vocabulary: rows are token ids."""
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.0": "blk.0", "self_attn.": "attn_",
             "o_proj": "output", "mlp.": "ffn_", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm", "_proj": ""}
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    keys = {"embedding_length": HIDDEN, "block_count": 1, "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS,
            "attention.head_count_kv": HEADS, "context_length": 512, "vocab_size": VOCABULARY}
    meta = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    meta += text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-6)
    for key, value in keys.items():
        meta += text("llama." + key) + struct.pack("<II", 4, value)
    table, data = b"", b""
    for name, (shape, values) in of.items():
        for old, new in names.items():
            name = name.replace(old, new)
        table += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        table += struct.pack("<IQ", 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(of), 2 + len(keys)) + meta + table
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % 32) + data)


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=1)


ROWS = [{"prompt": f"How many is {n}?", "completion": f"It is {n}."} for n in range(12)]
RUN = {"model": "model", "output": "run", "device": "cpu", "lora": {"r": 2, "lora_alpha": 4}, "quantization": "none",
           "data": {"train": [{"path": "train.jsonl"}], "eval": [{"path": "eval.jsonl"}], "max_length": 96,
                    "chat_template": "template.jinja"},
           "train": {"max_steps": 2, "batch_size": 4, "compute": "fp32", "slots": 1, "micro_batch_tokens": 128}}


def write_rows(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make():
    """A folder with a run that trains, in seconds; cases copy it."""
    at = folder()
    model = os.path.join(at, "model")
    os.makedirs(model)
    write_json(os.path.join(model, "config.json"), CONFIG)
    write_safetensors(os.path.join(model, "model.safetensors"), tensors())
    shutil.copy(os.path.join(DATA, "tokenizers", "smollm2", "tokenizer.json"), model)
    write_json(os.path.join(model, "tokenizer_config.json"), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    shutil.copy(os.path.join(DATA, "chat", "smollm2.jinja"), os.path.join(at, "template.jinja"))
    write_rows(os.path.join(at, "train.jsonl"), ROWS)
    write_rows(os.path.join(at, "eval.jsonl"), [{"prompt": "And a thousand?", "completion": "Many."}])
    write_json(os.path.join(at, "config.json"), RUN)
    return at
