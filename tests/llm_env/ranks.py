"""Several ranks on one machine, as forked processes of this one: no imports to repeat."""

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
import warnings

import torch


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank, size, port):
    """What a launcher sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _child(function, arguments, variables, path):
    os.environ.update(variables)
    torch.set_num_threads(1)
    code = 1
    try:
        result = function(*arguments)
        path.write_bytes(pickle.dumps(result))
        code = 0
    except BaseException:
        path.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no finalizers of pytest in a copy of it


def start_ranks(function, size, folder, *arguments):
    """Start `function(*arguments)` on `size` ranks; the processes."""
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = []
    for rank in range(size):
        task = (function, arguments, environment(rank, size, port), folder / f"{rank}.result")
        processes.append(context.Process(target=_child, args=task))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forks with threads
        for process in processes:
            process.start()
    return processes


def wait_for(processes, seconds):
    """Exit codes; whoever still runs after `seconds` is killed and None."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def on_ranks(function, size, folder, *arguments, seconds=120):
    """Results of `function(*arguments)` on every rank; their tracebacks where one failed."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = wait_for(start_ranks(function, size, folder, *arguments), seconds)
    errors = [p.read_text() for p in sorted(folder.glob("*.error"))]
    assert codes == [0] * size, f"exit codes {codes}\n" + "\n".join(errors)
    return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(size)]
