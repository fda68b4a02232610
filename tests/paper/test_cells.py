"""Means, spreads, gaps and bold against NumPy, and the three output formats."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from written_runs import some_runs, write_finished, write_unfinished

from cskd_hf.paper.cells import fill, fill_all
from cskd_hf.paper.find import inspect_run
from cskd_hf.paper.latex import latex
from cskd_hf.paper.markdown import as_json, markdown
from cskd_hf.paper.selection import select


def grids_of(root, values, table="table1", **chosen):
    """Grids of ResNet-18 on CUB-200 with the results `values`: method → one per seed."""
    chosen = {"datasets": ["cub200"], "models": ["resnet18"], "methods": list(values)} | chosen
    runs = some_runs(root, table, **chosen)
    for method, results in values.items():
        for seed, result in enumerate(results):
            (run,) = (run for key, run in runs.items() if key.method == method and key.seed == seed)
            write_finished(run, **result) if isinstance(result, dict) else write_finished(run, result)
    return fill_all(select([table], **chosen), runs, {key: inspect_run(run) for key, run in runs.items()})


@pytest.mark.parametrize(
    ("values", "within", "line"),
    [
        ([34.0, 34.2, 33.9], True, "| 34.03 ± 0.15 (3) | 33.28 ± 0.99 | +0.75 | 1.00         | yes       |"),
        ([34.7, 34.9], False, "| 34.80 ± 0.14 (2) | 33.28 ± 0.99 | +1.52 | 1.00         | no        |"),
        ([32.0, 32.2], False, "| 32.10 ± 0.14 (2) | 33.28 ± 0.99 | -1.18 | 1.00         | no        |"),
        ([33.278, 33.278], True, "| 33.28 ± 0.00 (2) | 33.28 ± 0.99 | +0.00 | 0.99         | yes       |"),
    ],
)
def test_a_cell_is_the_mean_over_seeds_and_its_gap_is_judged_by_the_joint_spread(tmp_path, values, within, line):
    (grid,) = grids_of(tmp_path, {"cskd": values})
    assert line in markdown([grid])
    (cell,) = grid.flat()
    assert (cell.ours.mean, cell.ours.n) == (pytest.approx(np.mean(values)), len(values))
    assert cell.ours.std == pytest.approx(np.std(values, ddof=1))
    assert cell.gap == pytest.approx(np.mean(values) - 33.28)
    assert cell.joint_spread == pytest.approx(math.sqrt(np.var(values, ddof=1) + 0.99**2))
    assert cell.within_joint_spread is within


def test_one_seed_has_a_gap_and_no_spread(tmp_path):
    (grid,) = grids_of(tmp_path, {"cskd": [33.0]})
    (cell,) = grid.flat()
    assert (cell.ours.std, cell.joint_spread, cell.within_joint_spread) == (None, None, None)
    assert cell.gap == pytest.approx(-0.28)
    assert "| 33.00 (1) | 33.28 ± 0.99 | -0.28 | –            | our n = 1 has no spread |" in markdown([grid])


def test_a_published_value_without_spread_is_marked(tmp_path):
    chosen = {"datasets": ["imagenet"], "models": ["resnet50"]}
    (grid,) = grids_of(tmp_path, {"cskd": [23.0, 24.0]}, "table5", **chosen)
    (cell,) = grid.flat()
    assert (cell.paper.mean, cell.paper.std, cell.within_joint_spread) == (23.6, None, None)
    assert "the paper gives no spread" in markdown([grid])


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({"cskd": [30.0, 30.2], "cross_entropy": [40.0, 40.2]}, "cskd"),
        ({"cskd": [40.0, 40.2], "cross_entropy": [30.0, 30.2]}, "cross_entropy"),
        # 0.19 apart; the joint spread is √(0.141² + 0.141²) = 0.2.
        ({"cskd": [30.0, 30.2], "cross_entropy": [30.19, 30.39]}, None),
        ({"cskd": [30.0, 30.2], "cross_entropy": [30.21, 30.41]}, "cskd"),
        # The second best decides, not the worst.
        ({"cskd": [30.0, 30.2], "cross_entropy": [30.1, 30.3], "adacos": [50.0, 50.1]}, None),
        # One seed has no spread; one row has no second best.
        ({"cskd": [30.0], "cross_entropy": [40.0, 40.2]}, None),
        ({"cskd": [30.0, 30.2], "cross_entropy": [40.0]}, None),
        ({"cskd": [30.0, 30.2], "cross_entropy": []}, None),
    ],
)
def test_bold_is_ahead_of_the_second_best_by_more_than_their_joint_spread(tmp_path, values, best):
    (grid,) = grids_of(tmp_path, values)
    assert [cell.method for cell in grid.flat() if cell.best] == ([best] if best else [])
    bold = re.findall(r"`(\w+)` +\| \*\*", markdown([grid]))
    assert bold == ([best] if best else [])
    assert latex([grid]).count(r"\textbf{") == (1 if best else 0)


def test_higher_recall_is_better(tmp_path):
    low = [{"top1_error": 40.0, "recall_at_1": recall} for recall in (40.0, 40.2)]
    high = [{"top1_error": 40.0, "recall_at_1": recall} for recall in (60.0, 60.2)]
    grids = grids_of(tmp_path, {"cross_entropy": low, "cskd": high}, "table6")
    assert [grid.block.metric for grid in grids] == ["top5_error", "ece", "recall_at_1"]
    assert [cell.method for cell in grids[2].flat() if cell.best] == ["cskd"]
    assert "Recall@1, higher is better" in markdown(grids)


@pytest.mark.parametrize(
    ("result", "values"),
    [
        ({"top5_error": 2.0, "ece": 3.0, "recall_at_1": 4.0}, {"top5_error": 2.0, "ece": 3.0, "recall_at_1": 4.0}),
        ({"ece": 3.0, "scaled_ece": 4.5}, {"top5_error": 20.0, "ece": 3.0, "ece_scaled": 4.5, "recall_at_1": 50.0}),
        ({"recall_at_1": None}, {"top5_error": 20.0, "ece": 10.0, "recall_at_1": None}),
    ],
)
def test_table_6_has_a_grid_for_each_metric_and_one_at_a_fitted_temperature(tmp_path, result, values):
    grids = grids_of(tmp_path, {"cskd": [{"top1_error": 33.0, **result}]}, "table6")
    cells = {grid.block.metric: grid.flat() for grid in grids}
    published = {"top5_error": 13.07, "ece": 15.44, "recall_at_1": 59.06}
    assert {metric: cell.values.get(0) for metric, (cell,) in cells.items()} == values
    assert {metric: cell.paper.mean for metric, (cell,) in cells.items() if cell.paper} == published
    recall = cells["recall_at_1"][0].missing
    assert recall.get(0) == ("finished without recall_at_1" if values["recall_at_1"] is None else None)


def test_missing_runs_are_listed_by_reason(tmp_path):
    chosen = {"datasets": ["cub200"], "models": ["resnet18"], "methods": ["cskd", "adacos", "cross_entropy"]}
    runs = some_runs(tmp_path, "table1", **chosen)
    for key, run in runs.items():
        if key.method == "cskd" and key.seed < 2:
            write_finished(run, 33.0 + key.seed)
        elif key.method == "cskd":
            write_unfinished(run, 37)
    states = {key: inspect_run(run) for key, run in runs.items()}
    text = markdown(fill_all(select(["table1"], **chosen), runs, states))
    assert text.split("### Missing\n\n")[1].splitlines() == [
        "- cub200_resnet18, seeds 0, 1, 2, not started: `cross_entropy`, `adacos`",
        "- cub200_resnet18, seed 2, unfinished (37 of 200 epochs): `cskd`",
    ]
    assert re.search(r"`cskd` +\| 33\.50 ± 0\.71 \(2\)", text)
    assert re.search(r"`adacos` +\| – ", text)


def test_markdown_columns_are_aligned(tmp_path):
    (grid,) = grids_of(tmp_path, {"cskd": [30.0, 30.2], "cross_entropy": [40.0, 40.2]})
    tables = [block.splitlines() for block in markdown([grid]).split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({tuple(at for at, character in enumerate(line) if character == "|") for line in table}) == 1


def test_the_json_is_exact_and_lists_missing_seeds(tmp_path):
    values = [33.123456789, 34.5, 32.75]
    (grid,) = grids_of(tmp_path, {"cskd": values, "pskd": []})
    content = json.loads(as_json([grid], ["data.workers=2"], ["a note"]))
    assert (content["table"], content["overrides"], content["notes"]) == ("table1", ["data.workers=2"], ["a note"])
    cskd, pskd = content["cells"]
    assert list(cskd["values"].values()) == values
    assert cskd["mean"] == pytest.approx(np.mean(values), rel=1e-15)
    assert cskd["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (cskd["paper_mean"], cskd["paper_std"], cskd["n"]) == (33.28, 0.99, 3)
    assert cskd["within_joint_spread"] is True
    assert (pskd["mean"], pskd["paper_mean"], pskd["n"], list(pskd["missing"])) == (None, None, 0, ["0", "1", "2"])


def test_captions_name_the_epoch_that_a_recipe_selects(tmp_path):
    (grid,) = grids_of(tmp_path, {"cskd": [33.0], "cross_entropy": [40.0]})
    for text in (markdown([grid]), latex([grid])):
        assert ", last epoch" in text
    ((cell,), others) = grid.cells
    chosen = "epoch with the best hold-out NLL"
    cell = replace(cell, training=cell.training._replace(chosen_epoch=chosen))
    for text in (markdown([replace(grid, cells=((cell,), others))]), latex([replace(grid, cells=((cell,),))])):
        assert chosen in text
    assert f"Percent, {chosen} or last epoch: mean" in markdown([replace(grid, cells=((cell,), others))])


def test_every_row_of_the_latex_table_has_all_columns(tmp_path):
    runs = some_runs(tmp_path, "table1", models=["resnet18"])
    for key, run in runs.items():
        if key.dataset != "mit67":
            write_finished(run, 30.0 + key.seed)
    blocks = select(["table1"], models=["resnet18"])
    text = latex([fill(blocks[0], runs, {key: inspect_run(run) for key, run in runs.items()})], ["data.batch_size=16"])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 2 * 6  # the header; ours and the paper's for six methods
    assert {line.count(" & ") for line in rows} == {5}
    assert r"\begin{tabular}{lccccc}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert re.findall(r"\\begin\{(\w+)\}", text) == list(reversed(re.findall(r"\\end\{(\w+)\}", text)))
    assert r"    CS-KD & 31.00 $\pm$ 1.00 & 31.00 $\pm$ 1.00 & 31.00 $\pm$ 1.00 & 31.00 $\pm$ 1.00 & -- \\" in rows
    assert r"over $n=3$ seeds" in text
    assert r"data.batch\_size=16" in text
    assert not re.search(r"(?<!\\)[_%#]", re.sub(r"\\label\{.*\}", "", text))


@pytest.mark.parametrize(
    ("table", "chosen", "heading", "header"),
    [
        ("table1", {"models": ["resnet18"], "datasets": ["cub200", "mit67"]}, "ResNet-18: ", ["CUB-200-2011", "MIT67"]),
        ("table1", {"models": ["resnet18"], "datasets": ["cub200"]}, "ResNet-18: ", ["CUB-200-2011"]),
        ("table5", {"models": ["resnet50", "resnet101"]}, "ImageNet: ", ["ResNet-50", "ResNet-101"]),
    ],
)
def test_headings_name_the_shared_network_or_dataset_and_columns_the_other(table, chosen, heading, header):
    block = select([table], methods=["cskd"], **chosen)[0]
    grid = fill(block, {}, {})
    lines = markdown([grid]).splitlines()
    assert f"### {heading}Top-1 error, lower is better" in lines
    row = next(line for line in lines if line.startswith("| method"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == header
    text = latex([grid])
    assert "    Method & " + " & ".join(head.replace("_", r"\_") for head in header) + r" \\" in text.splitlines()
    assert rf"\caption{{{heading.replace(':', ',')}Top-1 error in percent" in text


def test_latex_prints_n_per_cell_if_it_varies(tmp_path):
    (grid,) = grids_of(tmp_path, {"cskd": [30.0, 30.2], "cross_entropy": [40.0, 40.2, 40.4]})
    text = latex([grid])
    assert "over $n$ seeds, $n$ in parentheses" in text
    assert r"40.20 $\pm$ 0.20 (3)" in text
    assert r"30.10} $\pm$ 0.14 (2)" in text
    assert r"33.28 $\pm$ 0.99}" in text
