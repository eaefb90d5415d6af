"""One entry for all suites: ``python -m virft.evaluate SUITE`` asks a model and scores its replies."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

from virft.errors import UserError
from virft.evaluate.flags import parse
from virft.programs import run_program

SUITES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "coco": ("virft.evaluate.coco", "object detection on COCO or your own COCO-format annotations"),
        "lvis": ("virft.evaluate.lvis", "object detection on LVIS"),
        "classification": (
            "virft.evaluate.classification",
            "fine-grained classification, or your own images",
        ),
        "rows": ("virft.evaluate.rows", "your own held-out rows: detection, classification or grounding"),
        "lisa": ("virft.evaluate.lisa", "reasoning grounding on LISA's ReasonSeg, with masks through SAM"),
    }
)
"""Suite -> (module, what it is). A module has a dataclass ``Settings`` and ``evaluate(settings)``."""


def usage() -> str:
    """The suites and how to go on."""
    lines = [f"  {name:16s}{summary}" for name, (_, summary) in SUITES.items()]
    return (
        "usage: python -m virft.evaluate SUITE [--flags]\n\nAsks a model and scores its replies. Suites:\n"
        + "\n".join(lines)
        + "\n\nThe flags of a suite: python -m virft.evaluate SUITE --help\n"
    )


def main() -> None:
    """Run the suite that the command line names."""
    suite, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if suite in ("-h", "--help"):
        sys.stdout.write(usage())
        return
    if suite not in SUITES:
        raise UserError(f"{suite!r} is no suite; choose one of {', '.join(SUITES)}")
    module = importlib.import_module(SUITES[suite][0])
    module.evaluate(parse(module.Settings, arguments, f"python -m virft.evaluate {suite}"))


if __name__ == "__main__":
    run_program(main)
