"""Runs a training program under torchrun with DeepSpeed on a machine without an accelerator. For tests only.

accelerate chooses no backend for torchrun on such a machine unless ``--use_cpu`` is given, and with
``--use_cpu`` it ignores DeepSpeed; here it is told to use gloo.

    torchrun --nproc_per_node=2 tests/cpu_torchrun.py src/virft/grpo.py --deepspeed local_scripts/zero3.json
    ...
"""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """Patch accelerate, then run the program that the first argument names with the other arguments."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def gloo(self, cpu=False, sagemaker_dp=False, backend=None):  # the signature that accelerate calls
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = gloo
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
