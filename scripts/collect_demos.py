"""Collect demonstrations from a task's scripted expert.

python scripts/collect_demos.py --task pusht -n 200 --output data/demos.zarr.zip         PushT's published layout
python scripts/collect_demos.py --task pusht_m -n 300 --output data/pusht_m/scripted.zarr.zip
python scripts/collect_demos.py --task block_push -n 300 --output data/block_push/demos.zarr.zip
python scripts/collect_demos.py --task lift -n 100 --output data/lift.hdf5               robomimic's HDF5 format
python scripts/collect_demos.py --task sim_arm -n 100 --output data/sim_arm              a folder of UMI archives
python scripts/collect_demos.py --task umi -n 20 --output data/umi/synthetic.zarr.zip    UMI's layout
python scripts/collect_demos.py --task sim_arm -n 100 --measure                          only the rate of success
python scripts/collect_demos.py --task pusht --help                                      that task's options
"""

import argparse
import dataclasses
import typing
from pathlib import Path

from unified_video_action.demos.collecting import Collector, collect, load_collector
from unified_video_action.workspace.commands import mistakes, script_parser


def add_options(parser: argparse.ArgumentParser, collector: type[Collector]) -> list[str]:
    """An option for every field of a task's collector; their names."""
    hints, names = typing.get_type_hints(collector), []
    for field in dataclasses.fields(collector):
        if not field.init:
            continue
        kind = hints[field.name]
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        if typing.get_origin(kind) is tuple:
            how = {"type": typing.get_args(kind)[0], "nargs": "+"}
        text = f"{field.metadata.get('help', '')} (default %(default)s)"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=text, **how)
        names.append(field.name)
    return names


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__, add_help=False)
    parser.add_argument("--task", help="environment whose expert plays")
    task = parser.parse_known_args(arguments)[0].task
    parser.add_argument("-h", "--help", action="help", help="show this, with --task also the options of its expert")
    parser.add_argument("-n", "--episodes", type=int, default=200, help="successful episodes to collect (default 200)")
    parser.add_argument("--output", type=Path, help="a new file or folder: see above")
    parser.add_argument("--measure", action="store_true", help="keep nothing, and say how often the expert succeeds")
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    with mistakes(parser):
        collector = load_collector(task) if task is not None else None
        names = [] if collector is None else add_options(parser, collector)
        options = parser.parse_args(arguments)
        if collector is None:
            parser.error("the following arguments are required: --task")
        if options.episodes < 1 or options.workers < 1:
            raise ValueError("--episodes and --workers must be at least 1")
        if (options.output is None) != options.measure:
            raise ValueError("give either --output or --measure")
        values = {name: getattr(options, name) for name in names}
        made = collector(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        collect(made, task, options.episodes, options.output, options.workers)


if __name__ == "__main__":
    main()
