"""What runs one process's share of a model: loader, model runner, sampler."""
