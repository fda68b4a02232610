"""Print finished runs side by side: `python scripts/compare.py RUN RUN …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cskd_hf.models.export import loading_code


def main(folders: list[Path]) -> None:
    header = ("method", "top-1 error", "NLL", "ECE", "after T:", "NLL", "ECE", "T", "images/s")
    rows = []
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        last, scaled = summary["metrics"]["last"], summary["metrics"]["metrics_scaled"]
        rows.append(
            (
                summary["method"]["name"],
                f"{last['top1_error']:.2f} %",
                f"{last['nll']:.4f}",
                f"{last['ece']:.2f} %",
                "",
                f"{scaled['nll']:.4f}" if scaled else "–",
                f"{scaled['ece']:.2f} %" if scaled else "–",
                f"{summary['metrics']['temperature']:.2f}" if scaled else "–",
                f"{summary['throughput']['images_per_second']:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print()
    for row in (header, *rows):
        print(
            "  ".join(
                f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print(
        "\nTest split, last epoch, one seed each: a demonstration; recipes/README.md has means over seeds."
        "\nECE: 20 bins. After T: logits divided by T, fitted on the held-out split. images/s: anchors; CS-KD"
        "\nloads two images for each.\n"
    )
    for folder in folders:
        print(f"{folder}\n    report.html  figures/reliability.png  figures/learning_curves.png")
    print("\nLoad the weights:\n")
    summary = json.loads((folders[0] / "summary.json").read_text(encoding="utf-8"))
    print(loading_code(f"local-dir:{(folders[0] / 'model').as_posix()}", summary["model"]["needs_cskd_hf"]))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
