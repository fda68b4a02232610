"""Evaluate trained weights on a split: the metrics of summary.json, with intervals, on any images of the same classes.

cskd-evaluate runs/digits_test_resnet-cskd-seed0
cskd-evaluate runs/A runs/B hf-hub:OWNER/NAME data.test_split=val --html compared.html
cskd-evaluate runs/digits_test_resnet-cskd-seed0 --resolution 24,32,40
cskd-evaluate runs/digits_test_resnet-cskd-seed0 --calibration temperature,vector,isotonic --conformal 0.9
cskd-evaluate runs/A runs/B --ood digits,FOLDER
cskd-evaluate runs/digits_test_resnet-cskd-seed0 --corruptions
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cskd_hf.engine.cpu_tuning import join_ranks_on_cpus, keep_freed_memory, limit_openmp_spinning
from cskd_hf.errors import UserError, run_command
from cskd_hf.evaluation.formats import count_images
from cskd_hf.evaluation.holdout import find_holdout
from cskd_hf.evaluation.images import data_section, load_ood, load_splits
from cskd_hf.evaluation.inputs import (
    MAPS,
    check_outputs,
    parse_corruptions,
    parse_coverages,
    parse_heights,
    parse_names,
    parse_ood,
)
from cskd_hf.files import write_json, write_text
from cskd_hf.recipe.arguments import CommandParser
from cskd_hf.recipe.sections import DataSection, fill
from cskd_hf.runs.weights import ALLOWED, Weights, find_weights

if TYPE_CHECKING:
    from cskd_hf.data.splits import ImageSplit
    from cskd_hf.evaluation.comparison import Compared, Difference

FORMATS = ("json", "markdown", "latex", "html")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    overrides = [word for word in args.words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
    weights = [find_weights(word) for word in args.words if word not in overrides]
    if not weights:
        raise UserError(f"{overrides[0]}: which model? Name {ALLOWED}")
    _check_options(args, len(weights))
    data = data_section(weights, overrides)
    heights = [] if args.resolution is None else parse_heights(args.resolution)
    severities = args.severities or "1,2,3,4,5"
    corruptions = [] if args.corruptions is None else parse_corruptions(args.corruptions, severities)
    ood = [] if args.ood is None else parse_ood(args.ood)
    maps = [] if args.calibration is None else parse_names(args.calibration, "--calibration", MAPS)
    coverages = [] if args.conformal is None else parse_coverages(args.conformal, "--conformal")
    if maps or coverages:
        find_holdout(weights[0], "--calibration" if maps else "--conformal")
    outputs = {name: path for name in FORMATS if (path := getattr(args, name)) is not None}
    check_outputs({f"--{name}": path for name, path in outputs.items()})

    limit_openmp_spinning()  # before the first import of torch
    splits = load_splits(weights, data)  # a wrong split shows before torch is imported
    data = fill(data, {"test_split": splits[0].name})
    others = [(name, load_ood(name, data)) for name in ood]
    import torch
    from accelerate import Accelerator

    from cskd_hf.runs.folder import check_share

    for own, split in zip(weights, splits, strict=True):
        if own.run is not None:
            check_share(own.run, split, data)
    join_ranks_on_cpus()
    if not torch.cuda.is_available():
        keep_freed_memory()
    if not (heights or maps or coverages or corruptions or others):
        return _compare(weights, splits, data, args, outputs)
    accelerator, one = Accelerator(), (weights[0], splits[0], data)
    if heights:
        from cskd_hf.evaluation.resolution import sweep

        result = sweep(*one, accelerator, heights)
    elif maps or coverages:
        from cskd_hf.evaluation.holdout_tables import holdout_tables

        result = holdout_tables(*one, accelerator, maps, coverages)
    elif corruptions:
        from cskd_hf.evaluation.corrupted import sweep as sweep_corruptions

        result = sweep_corruptions(*one, accelerator, corruptions)
    else:
        from cskd_hf.evaluation.ood_table import detect

        result = detect(weights, splits, data, accelerator, others)
    accelerator.end_training()  # otherwise gloo's threads may abort the process at interpreter exit
    if accelerator.is_main_process:
        print("\n".join(result.lines))
        for path in outputs.values():  # JSON alone, see `_check_options`
            write_json(path, result.content)
            print(f"wrote {path}")
    return 0


def _compare(
    weights: Sequence[Weights],
    splits: Sequence[ImageSplit],
    data: DataSection,
    args: argparse.Namespace,
    outputs: Mapping[str, Path],
) -> int:
    """Print the metrics of each model and their differences; write all of them to the files."""
    from cskd_hf.evaluation.comparison import differences
    from cskd_hf.evaluation.comparison_table import as_text
    from cskd_hf.evaluation.metrics import DEFINITIONS
    from cskd_hf.evaluation.resampling import RESAMPLES
    from cskd_hf.evaluation.trained import evaluate

    metrics = list(DEFINITIONS) if args.metrics is None else parse_names(args.metrics, "--metrics", DEFINITIONS)
    models = evaluate(weights, splits, data, RESAMPLES if args.resamples is None else args.resamples)
    if models is None:
        return 0
    place = f"split {data.test_name!r} of {data.dataset}: {count_images(len(models[0].correct), models[0].skipped)}"
    for number, model in enumerate(models, start=1):
        print(f"{f'{number}: ' if len(models) > 1 else ''}{model.source}{f' on {place}' if len(models) == 1 else ''}")
        print(f"{'   ' if len(models) > 1 else ''}{model.calibration}")
    if len(models) > 1:
        print(f"on {place}")
    rows = list(differences(models))
    print(as_text(models, rows, metrics))
    for name, path in outputs.items():
        _write(name, path, models, rows, [own.run for own in weights], place)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="cskd-evaluate",
        description="Evaluate weights on the images of a test split; several models are compared with the first.",
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="MODEL", help=ALLOWED)
    images = "images to evaluate on; default: those of the runs' recipes"
    add("overrides", nargs="*", default=[], metavar="data.key=value", help=images)
    add("--resamples", type=int, metavar="N", help="of the images, and swaps of answers (default: 1000); 0: neither")
    resolution = "compare the errors on test images of these heights instead"
    add("--resolution", metavar="PIXELS,PIXELS,...", help=resolution)
    maps = f"compare maps of the logits instead, fitted on the run's hold-out images: {', '.join(MAPS)}"
    add("--calibration", metavar="MAP,MAP,...", help=maps)
    coverages = "measure prediction sets of these coverages instead, such as 0.9"
    add("--conformal", metavar="SHARE,SHARE,...", help=coverages)
    kinds = "evaluate on corrupted test images instead: ImageNet-C's fifteen kinds, or these"
    add("--corruptions", nargs="?", const="all", metavar="KIND,KIND,...", help=kinds)
    add("--severities", metavar="N,N,...", help="of --corruptions (default: all)")
    ood = "detect images of other classes instead: a dataset's test images, or a folder of images"
    add("--ood", action="append", metavar="NAME|FOLDER", help=ood)
    add("--metrics", metavar="NAME,NAME,...", help="print these metrics only; files always have all of them")
    for name in FORMATS:
        add(f"--{name}", type=Path, metavar="FILE", help=f"also write {name.upper()}")
    return parser.parse_intermixed_args(argv)


def _check_options(args: argparse.Namespace, models: int) -> None:
    """Raises UserError if options exclude each other, or a number is negative."""
    if args.resamples is not None and args.resamples < 0:
        raise UserError(f"--resamples: read {args.resamples}; write 0 for no intervals, or 1000")
    options = ("resolution", "calibration", "conformal", "corruptions", "ood")
    instead = [f"--{name}" for name in options if getattr(args, name) is not None]
    if args.severities is not None and args.corruptions is None:
        raise UserError("--severities: write it with --corruptions")
    if not instead:
        return
    if len(instead) > 1 and instead != ["--calibration", "--conformal"]:
        raise UserError(f"{instead[0]}: write it without {instead[1]}, in a command of its own")
    if models > 1 and instead != ["--ood"]:
        raise UserError(f"{instead[0]}: takes one model; read {models}")
    for name in ("metrics", "resamples", "markdown", "latex", "html"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: does not apply with {instead[0]}; leave it out")


def _write(
    name: str, path: Path, models: list[Compared], rows: list[Difference], runs: Sequence[Path | None], place: str
) -> None:
    from cskd_hf.evaluation import comparison_table as table

    title = f"{'Models' if len(models) > 1 else 'Model'} on {place}"
    if name == "json":
        content = table.as_json(models)
        compared = {"models": content, "differences": [row._asdict() for row in rows]}
        write_json(path, content[0] if len(models) == 1 else compared)
    elif name == "html":
        from cskd_hf.report.side_by_side import write_comparison

        write_comparison(models, rows, runs, path, title)
    else:
        write_text(path, (table.as_latex if name == "latex" else table.as_markdown)(models, rows, title))
    print(f"wrote {path}")


cli = partial(run_command, main)  # the console script cskd-evaluate

if __name__ == "__main__":
    cli()
