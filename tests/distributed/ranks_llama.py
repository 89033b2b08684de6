"""One rank of a tensor-parallel model: writes the logits of a prompt, and of a token after it, to a file."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from support.device import DrivenWorker, make_dispatcher

rank, world_size, init_method, model, output, *settings = sys.argv[1:]
dispatcher = make_dispatcher(Path(model), **dict(setting.split("=") for setting in settings))
dispatcher.vllm_config.parallel_config.tensor_parallel_size = int(world_size)
driver = DrivenWorker(dispatcher, rank=int(rank), init_method=init_method)
driver.add("r", list(range(1, 30)))
driver.step({"r": 29})
prefill = driver.logits
driver.step({"r": 1})
torch.save(torch.cat((prefill, driver.logits)), f"{output}{rank}")
# A rank that leaves while the other still works would abort that one.
dist.barrier()
driver.worker.shutdown()
