"""Several ranks of one run on this machine, started without a launcher: each gets the environment that one would set."""
import os, socket, subprocess, sys, time

from training import NIBBLE


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank, size, port, token="token of the test", attempt=0):
    return {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NIBBLE_JOB_TOKEN": token, "NIBBLE_ATTEMPT": str(attempt)}


def start_ranks(config, size, *extra, env=None, port=None):
    """The processes of `nibble train CONFIG EXTRA` on `size` ranks."""
    port = port or free_port()
    return [subprocess.Popen([NIBBLE, "train", config, *extra], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env={**environment(rank, size, port), **(env or {})}) for rank in range(size)]


def end_ranks(processes, timeout=120):
    """(exit code, standard error) of each. Ranks that do not end are killed, and what all of them have said is shown."""
    until = time.monotonic() + timeout
    try:
        texts = [p.communicate(timeout=max(1, until - time.monotonic()))[1] for p in processes]
    except subprocess.TimeoutExpired:
        running = [rank for rank, p in enumerate(processes) if p.poll() is None]
        for p in processes:
            p.kill()
        said = "".join(f"--- rank {rank}\n{p.communicate()[1]}" for rank, p in enumerate(processes))
        sys.exit(f"ranks {running} have not ended within {timeout} s\n{said}")
    return [(p.returncode, text) for p, text in zip(processes, texts)]


def train_ranks(config, size, *extra, env=None, timeout=120):
    return end_ranks(start_ranks(config, size, *extra, env=env), timeout)
