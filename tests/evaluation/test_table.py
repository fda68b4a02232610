from __future__ import annotations

from summaries import SUMMARY, metric_values

from cskd_hf.evaluation.formats import markdown_table, text_table
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.evaluation.table import metric_cells, metric_rows

VALUES = metric_values(nll=0.81236, recall_at_8=None)


def test_a_row_has_name_value_calibrated_value_and_definition() -> None:
    rows = metric_rows(VALUES, SUMMARY.metrics.metrics_scaled)
    assert [row.name for row in rows] == [name for name in DEFINITIONS if name != "recall_at_8"]  # not measured
    assert rows[2] == ("nll", 0.81236, 32.0, DEFINITIONS["nll"])
    assert metric_rows(dict(VALUES))[2] == ("nll", 0.81236, None, DEFINITIONS["nll"])


def test_a_table_has_a_calibrated_column_only_with_a_temperature() -> None:
    cells = metric_cells(metric_rows(VALUES, SUMMARY.metrics.metrics_scaled))
    header, *lines = text_table(cells).splitlines()
    assert header.split() == ["metric", "as", "trained", "calibrated", "definition"]
    assert {line[header.index("definition") - 2 :][:2] for line in lines} == {"  "}
    assert lines[2].split()[:3] == ["nll", "0.8124", "32"]
    header, rule, *lines = markdown_table(cells).splitlines()
    assert (header, rule) == ("| metric | as trained | calibrated | definition |", "| --- | --- | --- | --- |")
    assert lines[2] == f"| nll | 0.8124 | 32 | {DEFINITIONS['nll']} |"
    assert metric_cells(metric_rows(VALUES))[3] == ["nll", "0.8124", DEFINITIONS["nll"]]
