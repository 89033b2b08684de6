"""Prints by how many bytes this process's anonymous memory grows, at most, while a model is loaded."""

import sys
import threading
from pathlib import Path

import torch
from support.device import make_dispatcher

STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


dispatcher = make_dispatcher(Path(sys.argv[1]), **dict(setting.split("=") for setting in sys.argv[2:]))
worker = dispatcher.worker_factory(local_rank=0, rank=0, distributed_init_method="", is_driver_worker=True)
done = threading.Event()
peak = 0


def sample() -> None:
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous_bytes())


with dispatcher.activate():
    worker.init_device()
    # oneDNN's own set-up is not the model's.
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64), 1)
    torch.ops.mkldnn._linear_pointwise(torch.ones(1, 64), packed, None, "none", [], "")
    before = anonymous_bytes()
    sampler = threading.Thread(target=sample)
    sampler.start()
    worker.load_model()
    done.set()
    sampler.join()
print(max(peak, anonymous_bytes()) - before)
