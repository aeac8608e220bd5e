#!/usr/bin/env python3
"""What torch does in place of Nibble's ops on the same card, at Llama 3 8B's shapes: one JSON object on standard output.

  attention   8 documents of 2,048 tokens, 32/8 heads of 128, causal, by cuDNN where torch has it, else by its flash kernel
  product     16,384 x 14,336 x 4,096 in bf16, by torch.matmul
  nf4         dequantising 14,336 x 4,096 by bitsandbytes where it is installed, else by its formula in torch
  step        PEFT with bitsandbytes, one layer's linears, where both are installed

Exit code 69 where torch or a GPU is missing."""
import json
import sys


def best_seconds(call, torch, repeats=20):
    call()
    torch.cuda.synchronize()
    best = 1e30
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) * 1e-3)
    return best


def attention(torch):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q = torch.randn(8, 32, 2048, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(8, 8, 2048, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    for backend, name in ((SDPBackend.CUDNN_ATTENTION, "cuDNN"), (SDPBackend.FLASH_ATTENTION, "flash")):
        try:
            with sdpa_kernel(backend):
                def forward():
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                out = forward()
                dout = torch.randn_like(out)
                seconds = best_seconds(forward, torch)
                backward = best_seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), torch)
            return {"attention_backend": name, "attention_forward_seconds": seconds, "attention_backward_seconds": backward}
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return {}


def product(torch):
    a = torch.randn(16384, 4096, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(14336, 4096, device="cuda", dtype=torch.bfloat16)
    seconds = best_seconds(lambda: a @ b.T, torch)
    return {"product_seconds": seconds, "product_flops_per_second": 2 * 16384 * 14336 * 4096 / seconds}


def nf4(torch):
    rows, columns = 14336, 4096
    try:
        import bitsandbytes.functional as bnb
        packed, state = bnb.quantize_4bit(torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16), quant_type="nf4", compress_statistics=True)
        return {"nf4_by": "bitsandbytes", "nf4_dequantize_seconds": best_seconds(lambda: bnb.dequantize_4bit(packed, state), torch)}
    except ImportError:
        codes = torch.randint(0, 256, (rows * columns // 2,), device="cuda", dtype=torch.uint8)
        table, absmax = torch.randn(16, device="cuda"), torch.rand(rows * columns // 64, 1, device="cuda")

        def dequantise():
            values = table[torch.stack((codes >> 4, codes & 15), 1).flatten().int()]
            return (values.view(-1, 64) * absmax).bfloat16()
        return {"nf4_by": "torch", "nf4_dequantize_seconds": best_seconds(dequantise, torch)}


def step(torch):
    """Tokens a second of a whole step of Llama 3 8B's shape by PEFT on bitsandbytes, weights made up."""
    try:
        import bitsandbytes  # noqa: F401
        from peft import LoraConfig, get_peft_model
        from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
        from transformers.integrations import replace_with_bnb_linear
    except ImportError as error:
        return {"step": f"not measured: {error}"}
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                         vocab_size=128256, max_position_embeddings=8192, rope_theta=5e5)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cpu"):
        model = LlamaForCausalLM(config)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    weights = model.state_dict()
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    model.load_state_dict(weights, strict=False)
    model = get_peft_model(model.cuda(), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    ids = torch.randint(0, config.vocab_size, (2, 2048), device="cuda")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def one():
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = best_seconds(one, torch, repeats=3)
    return {"step_tokens_per_second": ids.numel() / seconds, "step_peak_bytes": torch.cuda.max_memory_allocated()}


def main():
    try:
        import torch
    except ImportError:
        print("torch is not installed", file=sys.stderr)
        return 69
    if not torch.cuda.is_available():
        print("torch finds no GPU", file=sys.stderr)
        return 69
    results = {"torch": torch.__version__, "card": torch.cuda.get_device_name()}
    for measure in (attention, product, nf4, step):
        try:
            results.update(measure(torch))
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            results[measure.__name__] = f"failed: {str(error)[:300]}"
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
