#!/usr/bin/env python3
"""Packed data of any number of samples, made in seconds: python3 tests/many_samples.py FOLDER SAMPLES TOKENIZER.

nibble pack packs 100,000 rows; their shard is then there many times (links to one file), and so are their entries in the
index, each with its shard's number. NIBBLE names the program."""
import hashlib, json, os, random, shutil, subprocess, sys, tempfile

ROWS = 100_000


def make(folder, samples, tokenizer, nibble):
    """Returns the number of samples, `samples` rounded up to whole shards."""
    rng = random.Random(3)
    shards = -(-samples // ROWS)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(folder))) as work:
        rows = os.path.join(work, "rows.jsonl")
        with open(rows, "w") as file:
            for _ in range(ROWS):
                ids = [rng.randrange(1000) for _ in range(rng.randrange(4, 40))]
                file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
        subprocess.run([nibble, "pack", "--in", rows, "--out", os.path.join(work, "one"), "--tokenizer", tokenizer], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.makedirs(folder)
        manifest = json.load(open(os.path.join(work, "one", "manifest.json")))
        (shard,), of = manifest["shards"], manifest["samples"]
        entries = bytearray(open(os.path.join(work, "one", of["file"]), "rb").read())
        digest = hashlib.sha256()
        with open(os.path.join(folder, of["file"]), "wb") as index:
            for i in range(shards):
                for byte in range(4):  # the shard's number is at byte 20 of an entry's 40
                    entries[20 + byte::40] = bytes([i >> 8 * byte & 255]) * ROWS
                index.write(entries)
                digest.update(entries)
        manifest["shards"] = []
        for i in range(shards):
            name = f"shard-{i:05d}.jsonl.zst"
            if i == 0:
                shutil.copy(os.path.join(work, "one", shard["file"]), os.path.join(folder, name))
            else:
                os.link(os.path.join(folder, "shard-00000.jsonl.zst"), os.path.join(folder, name))
            manifest["shards"].append({**shard, "file": name})
    for key in ("rows", "content_bytes"):
        manifest[key] *= shards
    for key in ("count", "tokens", "supervised_tokens"):
        of[key] *= shards
    of.update(sha256=digest.hexdigest(), duplicates=of["duplicates"] * shards + (shards - 1) * ROWS)
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        json.dump(manifest, file)
    return shards * ROWS


if __name__ == "__main__":
    print(make(sys.argv[1], int(sys.argv[2]), sys.argv[3], os.environ.get("NIBBLE", "build/release/nibble")))
