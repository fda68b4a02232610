"""One check of gpu_check.py per process: `python scripts/gpu/checks.py NAME --device cuda --work DIR`.

Writes DIR/NAME.json: rows of what was checked, expected and found, with a verdict.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exactness import accumulation, deterministic, digits, gpu_tests, out_of_memory, resume_fp16, two_ranks
from harness import Bench
from speed import command, step_compiled, step_compiled_pairs, step_eager, step_reduce_overhead, versions

CHECKS = {
    function.__name__: function
    for function in (
        *(versions, step_eager, step_compiled, command, gpu_tests, accumulation, resume_fp16, deterministic, digits),
        *(out_of_memory, two_ranks, step_compiled_pairs, step_reduce_overhead),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=list(CHECKS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.check, args.device, args.work, args.quick)
    bench.save()
    CHECKS[args.check](bench)


if __name__ == "__main__":
    main()
