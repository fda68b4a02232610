"""What a user can get wrong in a recipe and its overrides, and the lines that tell it."""

from __future__ import annotations

from recipe_files import GOOD, changed

from cskd_hf.methods import METHODS

SECTIONS = "data, transform, model, method, optimizer, scheduler, run"
OPTIMIZER_KEYS = "opt, lr_base, lr, weight_decay, momentum, filter_bias_and_bn, layer_decay, betas, eps, fused"
NOT_AN_OVERRIDE = "not an override; write section.key=value, for example optimizer.lr=0.05"

# what is wrong: (file's content or None, overrides, the lines to be printed; in a line, … stands for anything)
MISTAKES: dict[str, tuple[str | bytes, list[str], list[str]]] = {
    "unknown key": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  momentun: 0.8\n"),
        [],
        [f"r.yaml:10: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?"],
    ),
    "unknown key on the command line": (
        GOOD,
        ["optimizer.momentun=0.8"],
        [f"command line: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?"],
    ),
    "unknown section": (
        GOOD + "optimiser:\n  lr: 1\n",
        [],
        [f"r.yaml:12: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"],
    ),
    "unknown section on the command line": (
        GOOD,
        ["optimiser.lr=1"],
        [f"command line: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"],
    ),
    "key that is a number": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  3: 2\n"),
        [],
        [f"r.yaml:10: optimizer.3: unknown key, read 2; allowed: {OPTIMIZER_KEYS}"],
    ),
    "wrong type": (
        changed("num_epochs: 2", "num_epochs: two"),
        [],
        ["r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer"],
    ),
    "quoted number": (changed("0.1", '"0.1"'), [], ["r.yaml:9: optimizer.lr: read '0.1'; allowed: a valid number"]),
    "number for a word": (
        GOOD,
        ["data.revision=123456"],
        ["command line: data.revision: read 123456; allowed: a valid string"],
    ),
    "truth for a count": (
        GOOD,
        ["data.workers=true"],
        ["command line: data.workers: read true; allowed: a valid integer, or auto"],
    ),
    "fraction for a count": (
        changed("num_epochs: 2", "num_epochs: 2.5"),
        [],
        ["r.yaml:11: scheduler.num_epochs: read 2.5; allowed: a valid integer"],
    ),
    "list too short": (
        GOOD,
        ["transform.input_size=[3, 32]"],
        ["command line: transform.input_size: read [3, 32]; allowed: a list of 3"],
    ),
    "list too long": (
        GOOD,
        ["transform.mean=[0.1, 0.2, 0.3, 0.4]"],
        ["command line: transform.mean: read [0.1, 0.2, 0.3, 0.4]; allowed: a list of 3"],
    ),
    "word for a list": (
        GOOD,
        ["run.report_to=wandb"],
        ["command line: run.report_to: read 'wandb'; allowed: a list"],
    ),
    "images that are not RGB": (
        GOOD,
        ["transform.input_size=[1, 32, 32]"],
        ["command line: transform.input_size: read [1, 32, 32]; allowed: images are RGB: write [3, height, width] …"],
    ),
    "third level": (
        changed("lr: 0.1", "lr: {start: 0.1}"),
        [],
        ["r.yaml:9: optimizer.lr: read a mapping; allowed: a valid number"],
    ),
    "no rate": (
        changed("  lr: 0.1\n", "  opt: lamb\n"),
        [],
        ["r.yaml:8: optimizer.lr: missing; write lr, or lr_base, which the global batch scales"],
    ),
    "two rates": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  lr_base: 0.1\n"),
        [],
        ["r.yaml:9: optimizer.lr: read 0.1; allowed: lr, or lr_base, which the global batch scales"],
    ),
    "missing key": (
        changed("  num_epochs: 2\n", "  sched: cosine\n"),
        [],
        ["r.yaml:10: scheduler.num_epochs: missing; it has no default"],
    ),
    "missing section": (
        changed("scheduler:\n  num_epochs: 2\n", ""),
        [],
        ["r.yaml: scheduler: missing; it has no default"],
    ),
    "section that is empty": (
        GOOD + "run:\n",
        [],
        ["r.yaml:12: run: read null; allowed: a section with keys of its own"],
    ),
    "section that is one value": (
        changed("data:\n  dataset: digits\n", "data: digits\n"),
        [],
        ["r.yaml:1: data: read 'digits'; allowed: a section with keys of its own"],
    ),
    "value out of range": (GOOD, ["optimizer.lr=0"], ["command line: optimizer.lr: read 0; allowed: greater than 0"]),
    "method's value out of range": (
        changed("temperature: 4.0", "temperature: -1"),
        [],
        ["r.yaml:7: method.temperature: read -1; allowed: greater than 0"],
    ),
    "share out of range": (
        GOOD,
        ["data.holdout=0.7"],
        ["command line: data.holdout: read 0.7; allowed: less than or equal to 0.5, or a valid string"],
    ),
    "NaN": (changed("0.1", ".nan"), [], ["r.yaml:9: optimizer.lr: read nan; allowed: a finite number"]),
    "infinity": (GOOD, ["optimizer.lr=.inf"], ["command line: optimizer.lr: read inf; allowed: a finite number"]),
    "number that overflows": (
        GOOD,
        ["optimizer.lr=1e999"],
        ["command line: optimizer.lr: read inf; allowed: a finite number"],
    ),
    "minus infinity in a method": (
        GOOD,
        ["method.distill_loss_weight=-.inf"],
        ["command line: method.distill_loss_weight: read -inf; allowed: a finite number"],
    ),
    "NaN in a list": (
        GOOD,
        ["optimizer.betas=[0.9, .nan]"],
        ["command line: optimizer.betas: read [0.9, nan]; allowed: a finite number"],
    ),
    "word that is none of the choices": (
        GOOD,
        ["scheduler.sched=multi_step"],
        [
            "command line: scheduler.sched: read 'multi_step'; allowed: cosine, tanh, step, multistep, poly or none; "
            "did you mean multistep?"
        ],
    ),
    "mode or truth": (
        GOOD,
        ["run.compile=yes"],
        [
            "command line: run.compile: read 'yes'; allowed: a valid boolean, or default, reduce-overhead or "
            "max-autotune"
        ],
    ),
    "another method's field": (
        GOOD,
        ["method.name=cross_entropy"],
        [
            "r.yaml:7: method.temperature: read 4.0, but cross_entropy has no such field, …cskd… has; "
            "allowed: name, smoothing (to leave another method's fields behind: 'method={name: cross_entropy}')"
        ],
    ),
    "another method's field in a replaced section": (
        GOOD,
        ["method={name: cross_entropy, temperature: 4}"],
        ["command line: method.temperature: read 4, but cross_entropy has no such field, …"],
    ),
    "misspelt field of a method": (
        changed("temperature", "temprature"),
        [],
        [
            "r.yaml:7: method.temprature: unknown key, read 4.0; allowed: name, temperature, distill_loss_weight, "
            "batch_norm; "
            "did you mean temperature?"
        ],
    ),
    "method without a name": (
        changed("  name: cskd\n", ""),
        [],
        [f"r.yaml:5: method: no name; allowed names: {', '.join(METHODS)}"],
    ),
    "method that is a word": (
        GOOD,
        ["method=cskd"],
        [f"command line: method: read 'cskd'; allowed: a section with a name, which is one of {', '.join(METHODS)}"],
    ),
    "unknown method": (
        changed("name: cskd", "name: csdk"),
        [],
        [f"r.yaml:6: method.name: read 'csdk'; allowed: {', '.join(METHODS)}; did you mean cskd?"],
    ),
    "unknown method on the command line": (
        GOOD,
        ["method.name=csdk"],
        [f"command line: method.name: read 'csdk'; allowed: {', '.join(METHODS)}; did you mean cskd?"],
    ),
    "empty file": ("", [], ["r.yaml: empty; a recipe has the sections data, model, method, optimizer and scheduler"]),
    "file of comments": ("# nothing\n", [], ["r.yaml: empty; …"]),
    "list": ("- data\n- model\n", [], ["r.yaml: a list, where a mapping of sections is needed (data: …, model: …)"]),
    "one value": ("digits\n", [], ["r.yaml: a single value, where a mapping of sections is needed (data: …"]),
    "two documents": (
        GOOD + "---\n" + GOOD,
        [],
        ["r.yaml:12: not YAML: expected a single document in the stream, but found another document"],
    ),
    "key written twice": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  momentum: 0.8\n  lr: 0.2\n"),
        [],
        ["r.yaml:11: optimizer.lr: written twice, first on line 9; keep one"],
    ),
    "section written twice": (
        GOOD + "data:\n  dataset: cub200\n",
        [],
        ["r.yaml:12: data: written twice, first on line 1; keep one"],
    ),
    "key written twice in an override": (
        GOOD,
        ["method={name: cskd, name: cross_entropy}"],
        ["command line:1: method.name: written twice, first on line 1; keep one"],
    ),
    "binary file": (b"\x89PNG\r\n\x1a\n\x00\xff", [], ["r.yaml: cannot be read as text: 'utf-8' codec can't decode …"]),
    "zero byte": ("data:\x00\n", [], ["r.yaml: not YAML: unacceptable character #x0000: …"]),
    "broken YAML": (
        "data: [1, 2\nmodel: {",
        [],
        ["r.yaml:2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"],
    ),
    "broken indentation": (
        changed("  lr: 0.1\n", "  lr: 0.1\n opt: lamb\n"),
        [],
        ["r.yaml:10: not YAML: while parsing a block mapping, expected <block end>, but found '<block mapping start>'"],
    ),
    "tabs": (
        changed("  lr: 0.1\n", "\tlr: 0.1\n"),
        [],
        ["r.yaml:9: not YAML: while scanning for the next token, found character '\\t' that cannot start any token"],
    ),
    "anchor inside itself": ("data: &d\n  dataset: *d\n", [], ["r.yaml: nested too deep; a recipe has two levels…"]),
    "tag that does not fit": (changed("0.1", "!!float x"), [], ["r.yaml: not YAML: a value does not fit its tag: …"]),
    "tag that runs code": (changed("digits", "!!python/object:os.system x"), [], ["r.yaml:2: not YAML: could not …"]),
    "override without an equals sign": (GOOD, ["optimizer.lr"], [f"optimizer.lr: {NOT_AN_OVERRIDE}"]),
    "override of three levels": (GOOD, ["a.b.c=1"], [f"a.b.c=1: {NOT_AN_OVERRIDE}"]),
    "override without a key": (GOOD, ["optimizer.=1"], [f"optimizer.=1: {NOT_AN_OVERRIDE}"]),
    "override of a key where the section is one value": (
        changed("data:\n  dataset: digits\n", "data: digits\n"),
        ["data.dataset=cub200"],
        ["data.dataset=cub200: data holds 'digits', which has no keys"],
    ),
    "override of a key where the section is empty": (
        GOOD + "run:\n",
        ["run.seed=1"],
        ["run.seed=1: run holds null, which has no keys"],
    ),
    "override without a value": (
        GOOD,
        ["optimizer.lr="],
        ["command line: optimizer.lr: read null; allowed: lr, or lr_base, which the global batch scales"],
    ),
    "override with a space before the equals sign": (
        GOOD,
        ["optimizer.lr =fast"],
        ["command line: optimizer.lr: read 'fast'; allowed: a valid number"],
    ),
    "override that is broken YAML": (
        GOOD,
        ["optimizer.betas=[0.9"],
        ["optimizer.betas=[0.9: the value is not YAML: while parsing a flow sequence, expected ',' or ']', but got …"],
    ),
    "several mistakes": (
        changed("dataset:", "datset:").replace("num_epochs: 2", "num_epochs: two"),
        ["optimizer.lr=-1", "run.seeed=1"],
        [
            "r.yaml:1: data.dataset: missing; it has no default",
            "r.yaml:2: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
            "command line: optimizer.lr: read -1; allowed: greater than 0",
            "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer",
            "command line: run.seeed: unknown key, read 1; allowed: output_dir, seed, …; did you mean seed?",
        ],
    ),
}
