"""Runs a training program under torchrun with DeepSpeed or FSDP on a machine without an accelerator. For
tests only.

accelerate chooses no backend for torchrun on such a machine unless ``--use_cpu`` is given, and with
``--use_cpu`` it ignores both; here it is told to use gloo, and for FSDP that the devices are GPUs.

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
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    kind = DistributedType.MULTI_GPU if "--fsdp" in sys.argv else DistributedType.MULTI_CPU

    def gloo(self, cpu=False, sagemaker_dp=False, backend=None):  # the signature that accelerate calls
        return "gloo", kind

    def set_device(self):
        self.device = torch.device("cpu")

    PartialState._prepare_backend, PartialState.set_device = gloo, set_device
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
