"""Options of every command: a mistake is one line."""

import importlib
import re

import pytest

from cskd_hf.errors import UserError

HELP = "--help shows what may follow"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train", f"no recipe; write cskd-train RECIPE; cskd-train {HELP}"),
        ("check r.yaml --speed --full", f"argument --full: not allowed with argument --speed; cskd-check {HELP}"),
        ("check r.yaml --speed --seconds 0", "--seconds: read 0, expected a number above 0 and at most 3600; …"),
        ("evaluate", f"the following arguments are required: MODEL; cskd-evaluate {HELP}"),
        ("evaluate runs/a --htlm page", "unrecognized arguments: --htlm page; did you mean --html, --help?"),
        ("predict runs/a", f"the following arguments are required: IMAGE; cskd-predict {HELP}"),
        ("predict runs/a x.png --csv y.csv", f"unrecognized arguments: --csv y.csv; cskd-predict {HELP}"),
        ("publish runs/a o/n --licence mit", "unrecognized arguments: --licence mit; did you mean --license, …?"),
        ("reproduce table1 --dataset", "argument --datasets: expected at least one argument; cskd-reproduce …"),
        ("reproduce sweep --runs", "argument --runs: expected one argument; cskd-reproduce sweep …"),
        ("reproduce figures", f"the following arguments are required: RUN; cskd-reproduce figures {HELP}"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(line: str, message: str) -> None:
    command, *arguments = line.split()
    pattern = re.escape(message).replace("…", ".*")
    with pytest.raises(UserError, match=f"^{pattern}$"):
        importlib.import_module(f"cskd_hf.{command}").main(arguments)
