"""``python -m vllm_ext`` is ``vllm-ext``."""

import sys

from vllm_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
