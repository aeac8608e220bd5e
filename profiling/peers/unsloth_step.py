#!/usr/bin/env python3
"""Tokens a second of a QLoRA step by Unsloth, as its published notebooks do it: unsloth_step.py MODEL [BATCH LENGTH RANK]

MODEL is a folder or a name that Unsloth loads, such as unsloth/llama-3-8b-bnb-4bit: weights cannot be made up here, since Unsloth
loads them itself. Its own kernels, its gradient checkpointing and 8-bit AdamW; LoRA on all linears, alpha as large as the rank, no
dropout, no bias, all tokens supervised. One JSON object on standard output. Exit code 69 where Unsloth or a GPU is missing.

https://github.com/unslothai/unsloth"""
import json
import sys
import time


def main():
    model_name, batch, length, rank = sys.argv[1], *map(int, sys.argv[2:5] or (8, 2048, 16))
    try:
        from unsloth import FastLanguageModel  # before torch and transformers, which it changes
        import torch
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, NotImplementedError) as error:  # the latter is what it says without a GPU
        print(f"Unsloth cannot be used: {error}", file=sys.stderr)
        return 69
    model, _ = FastLanguageModel.from_pretrained(model_name=model_name, max_seq_length=length, dtype=torch.bfloat16, load_in_4bit=True)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(model, r=rank, lora_alpha=rank, lora_dropout=0, bias="none", target_modules=modules,
                                             use_gradient_checkpointing="unsloth", random_state=3407)
    FastLanguageModel.for_training(model)
    optimizer = AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.01)
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device="cuda")
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"unsloth_tokens_per_second": ids.numel() / min(seconds), "unsloth_peak_bytes": torch.cuda.max_memory_allocated()}))
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 5):
        sys.exit(__doc__)
    sys.exit(main())
