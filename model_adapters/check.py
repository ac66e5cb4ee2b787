"""`python -m model_adapters.check FOLDER`: a checkpoint of your own held against stock transformers, check by check.

Exit 0 where every check passes, 1 where one does not, 2 where the checkpoint cannot be checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

from data.command_line import Parser, exit_status
from data.errors import AdapterError, reason_of
from model_adapters.registry import DTYPES, FAMILIES, load_adapter

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m model_adapters.check", description=__doc__)
    parser.add_argument("model", help="a checkpoint folder, or a hub id")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on the CPU, as stored elsewhere")
    parser.add_argument("--device", help="default: CUDA where there is one")
    args = parser.parse_args(argv)
    return exit_status("check", lambda: report(args.model, args.dtype, args.device))


def report(name: str, dtype: str | None, device: str | None) -> int:
    """Run and print all checks. Raises AdapterError where the checkpoint cannot be loaded."""
    from model_adapters.checks import run_checks
    from model_adapters.conformance import Conformance
    from model_adapters.loading import find_checkpoint
    from model_adapters.references import create_reference
    from model_adapters.stock import StockAdapter

    adapter = cast(StockAdapter, load_adapter(name, dtype=dtype, device=device))
    info = adapter.info
    print(f"{name}: {info.family}, {info.num_layers} layers, {str(info.dtype).removeprefix('torch.')}, on {adapter.device}\n")
    num_failed = 0
    try:
        reference = create_reference(adapter, find_checkpoint(name, FAMILIES).folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"the processor of {name} cannot be made from its files: {reason_of(error)}") from error
    for check in run_checks(Conformance(adapter, reference)):
        num_failed += not check.passed
        verdict = "ok" if check.passed else "FAILED"
        print(f"{verdict:<7}{check.name:<27}{check.figure:9.1e}  (at most {check.bound:.0e})  {check.words}", flush=True)
    print(f"\n{num_failed} failed" if num_failed else "\nall passed")
    return FAILED if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
