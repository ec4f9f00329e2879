"""Tables of the paper on this project's simulators and data: trained, measured, with intervals, as JSON and one page.

    python scripts/reproduce.py policies --budget smoke          Table I; --list names the tables and their budgets
    python scripts/reproduce.py policies --budget full --list    its cells, numbered, and what is there of them
    python scripts/reproduce.py policies --budget full --cell 3  one cell: for the jobs of a cluster

A table is a file of config/reproduce: rows (words of a training's command), columns (tasks, or ways to evaluate) and
budgets (seeds, episodes, sizes). Typed again, it goes on where it was. What failed is named in the table, and the exit
status is then 1. On SLURM: sbatch --array=0-N --gres=gpu:1 --wrap
'python scripts/reproduce.py TABLE --budget full --cell $SLURM_ARRAY_TASK_ID', then the command without --cell.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from unified_video_action.files import ROOT, data_folder

log = logging.getLogger("reproduce")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help="a file of config/reproduce")
    parser.add_argument("--budget", default="smoke", help="smoke, mini, small or full (default: smoke)")
    parser.add_argument("--output", type=Path, help="folder (default: outputs/reproduce/TABLE_BUDGET)")
    parser.add_argument("--data", type=Path, help="folder of demonstrations (default: $UVA_DATA_DIR, else data)")
    parser.add_argument("--cell", type=int, help="make this one only")
    parser.add_argument("--row", action="append", help="make the cells of this row only; may be repeated")
    parser.add_argument("--column", action="append", help="make the cells of this column only; may be repeated")
    parser.add_argument(
        "--seed", type=int, action="append", help="make the cells of this training seed only; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the cells, make nothing")
    parser.add_argument("--page", action="store_true", help="only write table.json and table.html from finished cells")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from unified_video_action.workspace import study
    from unified_video_action.workspace.study_report import text_tables, write_table

    if options.table is None:
        for name in study.names():
            log.info("%s", study.describe(name))
        return 0
    data = (options.data or data_folder()).resolve()
    os.environ["UVA_DATA_DIR"] = str(data)  # which the configurations read
    output = options.output or ROOT / "outputs" / "reproduce" / f"{options.table}_{options.budget}"
    try:
        table = study.Study(options.table, options.budget, output.resolve(), data)
        cells = list(table.cells())
        if options.cell is not None and not 0 <= options.cell < len(cells):
            raise ValueError(f"--cell {options.cell}: {options.table} has cells 0 to {len(cells) - 1}")
        for name, known in (("row", table.rows), ("column", table.columns), ("seed", table.budget["seeds"])):
            if unknown := set(getattr(options, name) or []) - set(known):
                raise ValueError(f"--{name} {unknown.pop()}: there are {', '.join(map(str, known))}")
    except ValueError as error:
        sys.exit(f"reproduce.py: {error}")
    if options.list:
        for number, cell in enumerate(cells):
            state = "done" if table.values(cell) else "begun" if cell.output.with_suffix(".log").exists() else "to do"
            log.info("%3d  %-6s %s", number, state, cell.name)
            for checkpoint, words in cell.trainings.items():
                folder = f"output_dir={study.hydra_value(checkpoint.parents[1])}"
                log.info("            python train.py %s", shlex.join([*words, folder]))
        return 0
    wanted = [
        cell
        for number, cell in enumerate(cells)
        if (options.cell is None or number == options.cell)
        and all(
            getattr(cell, name) in (getattr(options, name) or [getattr(cell, name)])
            for name in ("row", "column", "seed")
        )
    ]
    failed = {}
    for cell in [] if options.page else wanted:
        log.info("%s", cell.name)
        if reason := table.make(cell):
            failed[cell.name] = reason
            log.warning("  %s", reason)
    results = table.table(failed)
    write_table(output, results)
    log.info("%s\n\nPage: %s", text_tables(results), output / "table.html")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
