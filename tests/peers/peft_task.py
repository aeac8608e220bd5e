"""PEFT on conversations, padded batches, completion-only loss: peft_task.py MODEL.gguf TRAIN.jsonl DTYPE BATCH STEPS
Prints one JSON line: tokens per second of the rows (padding not counted), the first two steps left out."""
import json
import os
import sys
import time

import torch
from gguf_model import load
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer


def main():
    gguf, path, dtype, batch, steps = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    folder, name = os.path.split(os.path.abspath(gguf))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(gguf, dtype), config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    rows = [json.loads(line)["messages"] for line in open(path)]
    tokens, elapsed = 0, 0.0
    for step in range(steps):
        ids, labels = [], []
        for row in rows[step * batch:(step + 1) * batch]:
            text = tokenizer.apply_chat_template(row[:1], add_generation_prompt=True, tokenize=False)
            prompt = tokenizer(text, add_special_tokens=False).input_ids
            answer = tokenizer(row[1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
            ids.append(prompt + answer)
            labels.append([-100] * len(prompt) + answer)
        longest = max(map(len, ids))
        start = time.perf_counter()
        loss = model(input_ids=torch.tensor([i + [2] * (longest - len(i)) for i in ids]),
                     attention_mask=torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids]),
                     labels=torch.tensor([i + [-100] * (longest - len(i)) for i in labels])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            elapsed += time.perf_counter() - start
            tokens += sum(map(len, ids))
    print(json.dumps({"tokens_per_second": tokens / elapsed, "dtype": str(dtype)}))


main()
