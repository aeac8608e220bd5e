#!/usr/bin/env python3
"""Three steps of bitsandbytes' AdamW8bit, with all that goes in and comes out of each, for tests/golden/test_adamw_8bit.c:

  $(tests/peers/environment peft) tests/peers/adamw_8bit.py OUT.safetensors

bitsandbytes 0.50.2 on the CPU, which looks codes up in a table of 65,536 steps over [-1, 1], where its GPU kernels compare with
the map itself: the test allows for a step."""
import sys

import torch
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import save_file

N, STEPS = 600, 3  # two blocks of 256 and a part
generator = torch.Generator().manual_seed(7)
p = torch.nn.Parameter(torch.randn(N, generator=generator))
optimizer = AdamW8bit([p], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, min_8bit_size=0)
out = {"p0": p.detach().clone()}
for step in range(1, STEPS + 1):
    p.grad = torch.randn(N, generator=generator) * 10.0 ** -(torch.arange(N) % 5).float()
    out[f"g{step}"] = p.grad.clone()
    optimizer.step()
    out[f"p{step}"] = p.detach().clone()
    for name in ("state1", "state2", "absmax1", "absmax2"):
        out[f"{name}_{step}"] = optimizer.state[p][name].clone()
out["unsigned_map"] = optimizer.state[p]["qmap2"].clone()
save_file(out, sys.argv[1])
