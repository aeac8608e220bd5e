"""Encodes the same text with Hugging Face's tokenizers and with Nibble, compares ids and times; see
profiling/bench_tokenizer. Nibble is called in this process through a shared library made of its static one, so that
neither side's time holds file reading, JSON or the start of a process."""
import ctypes
import glob
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time

import gguf
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DOCUMENT_BYTES = 4096


def documents(root, megabytes):
    lines = []
    listed = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True, check=True).stdout
    for name in sorted(listed.split("\n")):
        if name.endswith((".c", ".h", ".md", ".py", ".sh", ".jinja", ".txt", ".jsonl", ".inp")):
            with open(os.path.join(root, name), encoding="utf-8", errors="ignore") as f:
                lines += [json.loads(l)["text"] if "/tokenizers/" in name else l.rstrip("\n") for l in f if l.strip()]
    order = random.Random(1)
    found, total, made = [], 0, []
    while total < megabytes * 1_000_000:
        size = 0
        while size < DOCUMENT_BYTES:
            line = order.choice(lines)[:2000]
            made.append(line)
            size += len(line.encode()) + 1
        found.append("\n".join(made))
        total += len(found[-1].encode())
        made = []
    return found, total


def peer(path):
    """The vocabulary of the GGUF as the tokenizer.json of SmolLM2 has it."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


class TokenList(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]


class Options(ctypes.Structure):
    _fields_ = [("add_special", ctypes.c_bool), ("parse_special", ctypes.c_bool)]


class Nibble:
    def __init__(self, root, path):
        made = tempfile.mkdtemp()
        library = os.path.join(made, "libnibble.so")
        sources = [f for d in ("base", "formats", "tokenizer") for f in glob.glob(f"{root}/csrc/{d}/*.c")]
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libpcre2-8", "libutf8proc", "libzstd", "libcjson"],
                               capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O3", "-DNDEBUG", "-fPIC", "-shared", f"-I{root}/csrc",
                        *sources, "-o", library, *flags, "-lpthread", "-lm"], check=True)
        self.library = ctypes.CDLL(library)
        self.handle = ctypes.c_void_p()
        if self.library.nib_tokenizer_open(path.encode(), ctypes.byref(self.handle)) != 0:
            raise SystemExit("nibble did not open " + path)
        self.library.nib_tokenizer_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, Options,
                                                      ctypes.POINTER(TokenList)]
        self.list = TokenList()

    def encode(self, text):
        data = text.encode()
        self.list.count = 0
        if self.library.nib_tokenizer_encode(self.handle, data, len(data), Options(True, True), self.list) != 0:
            raise SystemExit("nibble did not encode a text")
        return self.list


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu():
    with open("/proc/cpuinfo") as f:
        return next((l.split(":", 1)[1].strip() for l in f if l.startswith("model name")), "unknown")


def main():
    root, path, megabytes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    texts, size = documents(root, megabytes)
    ours, theirs = Nibble(root, path), peer(path)
    different, tokens = 0, 0
    for text in texts[:: max(1, len(texts) // 1000)]:
        got = ours.encode(text)
        different += got.ids[: got.count] != theirs.encode(text).ids
        tokens += got.count
    if different:
        raise SystemExit(f"{different} texts have other ids")
    # Each side twice, in turns; the better time of each, since other work on the machine only ever adds. The peer in its
    # faster mode, which leaves offsets out.
    peer_seconds, our_seconds = [], []
    for _ in range(2):
        our_seconds.append(timed(lambda: [ours.encode(text) for text in texts]))
        peer_seconds.append(timed(
            lambda: [len(theirs.encode_batch_fast(texts[i : i + 64])) for i in range(0, len(texts), 64)]))
    a, b = min(our_seconds), min(peer_seconds)
    print(json.dumps({
        "cpu": cpu(), "threads": 1, "bytes": size, "documents": len(texts), "vocabulary": os.path.basename(path),
        "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "compared_tokens_equal": tokens, "peer": f"tokenizers {tokenizers.__version__}",
        "nibble_mb_per_second": round(size / a / 1e6, 2), "peer_mb_per_second": round(size / b / 1e6, 2),
        "ratio": round(b / a, 2)}, indent=1))


if __name__ == "__main__":
    main()
