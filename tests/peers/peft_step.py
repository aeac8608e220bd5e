"""Whole training steps of PEFT on random tokens: peft_step.py MODEL.gguf {float32|bfloat16} BATCH LENGTH RANK STEPS
Prints one JSON line with the best step's tokens per second and the peak resident memory."""
import json
import resource
import sys
import time

import torch
from gguf_model import load
from peft import LoraConfig, get_peft_model


def main():
    gguf, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    batch, length, rank, steps = map(int, sys.argv[3:7])
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(gguf, dtype), config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (batch, length))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_second": batch * length / min(seconds), "seconds": seconds,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


main()
