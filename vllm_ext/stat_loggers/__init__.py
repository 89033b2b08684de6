"""The stat loggers that come with vllm_ext. They are plugins like those of others, off unless asked for."""
