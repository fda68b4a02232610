"""Overrides that cannot be read: one line each, with one that can be pasted."""

from __future__ import annotations

import pytest
from error_lines import assert_lines, error_lines
from recipe_files import changed, write

NOT_AN_OVERRIDE = "not an override; write section.key=value, for example optimizer.lr=0.05"

# (override, line printed); … stands for any text
SYNTAX = [
    ("optimizer.lr", "optimizer.lr: not an override; write optimizer.lr=VALUE, without spaces"),
    ("optimizer.lr: 0.1", "optimizer.lr: 0.1: not an override; write optimizer.lr=0.1"),
    ("--optimizer.lr=0.1", "--optimizer.lr=0.1: not an override; write optimizer.lr=0.1, without dashes"),
    ("other.yaml", "other.yaml: a second recipe; a command reads one"),
    ("a.b.c=1", f"a.b.c=1: {NOT_AN_OVERRIDE}"),
    ("optimizer.=1", f"optimizer.=1: {NOT_AN_OVERRIDE}"),
    ("method={name: cskd, name: pskd}", "command line: method: name: duplicate key, first at …; delete one"),
    ("optimizer.betas=[0.9", "optimizer.betas=[0.9: no ]; write 'optimizer.betas=[0.9]'"),
    ("optimizer.lr=!!float x", "command line: optimizer.lr: not YAML: the value does not fit its tag: …"),
    ("data.dataset=[2024] birds", "command line: data.dataset: not YAML: …; quote it: \"data.dataset='[2024] birds'\""),
    ("data.dataset=@birds", "command line: data.dataset: not YAML: …; quote it: \"data.dataset='@birds'\""),
    ('data.dataset="C:\\Users\\me"', "command line: data.dataset: not YAML: …; quote it: 'data.dataset=C:\\Users\\me'"),
    ("data.dataset=a: b", "command line: data.dataset: read a mapping; allowed: text; put text in quotes"),
    (
        "data.dataset=a #1",
        "command line: data.dataset: read 'a #1', where # begins a comment; quote it: \"data.dataset='a …",
    ),
    (
        "data.dataset=“birds”",
        "command line: data.dataset: read “birds”, in typographic quotes; write straight ones, or …",
    ),
]


@pytest.mark.parametrize(("override", "line"), SYNTAX)
def test_an_unreadable_override_is_one_line(override, line, folder, capsys):
    write(folder)
    assert_lines(error_lines(capsys, "r.yaml", override), [line])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["transform.input_size=[3,", "128,", "128]"], "…: cut at a space by the shell; write '…=[3, 128, 128]'"),
        (["method={name:", "cskd}"], "…: cut at a space by the shell; write 'method={name: cskd}'"),
        (["optimizer.lr", "=", "0.5"], "optimizer.lr: not an override; write optimizer.lr=0.5, without spaces"),
        (["method.temperature=2", "method={name: cskd}"], "method=…drops method.temperature; write it first"),
    ],
)
def test_overrides_that_do_not_fit_together_are_one_line(overrides, line, folder, capsys):
    write(folder)
    assert_lines(error_lines(capsys, "r.yaml", *overrides), [line])


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("data: digits", "data.dataset=cub200: data is 'digits', which has no keys"),
        ("data:", "data.dataset=cub200: data is null, which has no keys"),
    ],
)
def test_an_override_needs_a_section_with_keys(section, line, folder, capsys):
    write(folder, changed("data:\n  dataset: digits", section))
    assert_lines(error_lines(capsys, "r.yaml", "data.dataset=cub200"), [line])
