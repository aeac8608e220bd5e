"""llama.cpp's speed on the same prompt length: llama_generate.py MODEL.gguf PROMPT_TOKENS NEW_TOKENS THREADS
Prints one JSON line; the best of three runs of each."""
import json
import random
import sys
import time

from llama_cpp import Llama


def main():
    path, prompt_tokens, new_tokens, threads = sys.argv[1], *map(int, sys.argv[2:5])
    model = Llama(path, n_ctx=prompt_tokens + new_tokens + 8, n_threads=threads, n_threads_batch=threads,
                  n_batch=prompt_tokens, verbose=False)
    random.seed(0)
    prompt = [random.randrange(1000, 40000) for _ in range(prompt_tokens)]
    prefill, decode = [], []
    for _ in range(3):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        prefill.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(new_tokens):
            model.eval([model.sample(temp=0.0)])
        decode.append(time.perf_counter() - start)
    print(json.dumps({"prefill_tokens_per_second": prompt_tokens / min(prefill),
                      "decode_tokens_per_second": new_tokens / min(decode)}))


main()
