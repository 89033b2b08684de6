"""Every environment variable that the project reads, with its meaning."""

from __future__ import annotations

PREFIX = "VLLM_EXT_"
VLLM_PLUGINS = "VLLM_PLUGINS"
VLLM_TARGET_DEVICE = "VLLM_TARGET_DEVICE"
VLLM_EXT_CONFIG = "VLLM_EXT_CONFIG"
VLLM_EXT_SAFE_MODE = "VLLM_EXT_SAFE_MODE"
VLLM_MAX_N_SEQUENCES = "VLLM_MAX_N_SEQUENCES"
CLIFF_MAX_TERM_WIDTH = "CLIFF_MAX_TERM_WIDTH"
CLIFF_FIT_WIDTH = "CLIFF_FIT_WIDTH"

VARIABLES: dict[str, str] = {
    VLLM_PLUGINS: "names, separated by commas: no other out-of-tree plugin of any group may be used; "
    "unset allows all, empty allows none",
    VLLM_TARGET_DEVICE: "read for a vLLM only: with cpu it takes its own cpu platform, and asks no platform plugin",
    VLLM_EXT_CONFIG: "settings files, separated as in PATH, that are read instead of the usual ones",
    VLLM_EXT_SAFE_MODE: "1, true, yes or on: no out-of-tree plugin and no class path from the settings is used",
    VLLM_MAX_N_SEQUENCES: "the most completions that a request may ask for (n); 16384 where unset, as in vLLM",
    f"{PREFIX}<KEY>__<KEY>": "a setting, by its path in the settings file; lists are separated by "
    "commas, options are a JSON object",
    CLIFF_MAX_TERM_WIDTH: "characters of a line of the tables that commands print, at most; no limit where unset or 0",
    CLIFF_FIT_WIDTH: "1: tables are as wide as the terminal, also where they do not go to one",
    "XDG_CONFIG_HOME": "folder in which vllm-ext/vllm-ext.yaml is looked for; ~/.config where unset",
    "HOME": "the ~ in ~/.config",
    "OMP_NUM_THREADS": "threads of torch in this process; where a plugin changes it, in the processes to come",
    "GLOO_SOCKET_IFNAME": "network interface that the workers of an engine talk over; the loopback one where unset",
}
