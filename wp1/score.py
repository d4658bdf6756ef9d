"""python -m wp1.score TASK FILE: scores prediction files by a task's official rules, with n and 95 % intervals.

A file has JSON objects, one per line or in an array. Each has a prediction (`prediction`, `pred` or `response`) and the
reference, under the names of the benchmarks' own prediction files: `answers`, `ground_truth`, `label`, `outputs` or
`answer`; `all_classes` for LongBench's trec and lsht; `options` for InfiniteBench's choices, unless the answer is text
with its letter. A file whose fields or name belong to another benchmark or task is refused. No engine is started.

Several tasks can be scored at once, with their overall mean (for LongBench, over its categories):

  python -m wp1.score hotpotqa a.jsonl qasper b.jsonl     a task before its files
  python -m wp1.score hotpotqa.jsonl preds_passkey.jsonl  files named after their tasks
  python -m wp1.score longbench FOLDER                    all files in a folder named after LongBench's tasks
  python -m wp1.score longbench_e FOLDER                  LongBench-E's files, which have LongBench's names
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from wp1.core import command
from wp1.quality import benchmarks, scoring
from wp1.quality.benchmarks import Benchmarks
from wp1.quality.predictions import Scores, named, overalls, scores_of


def _line(name: str, score: dict[str, Any]) -> str:
    answers = "1 answer" if score["n"] == 1 else f"{score['n']} answers"
    few = f"  ({answers}: hardly a measurement)" if score["n"] < scoring.FEW else ""
    return f"{name:32} {score['mean']:7.2f}  [{score['low']:.2f}, {score['high']:.2f}]  n = {score['n']:,}{few}"


def _list(among: Benchmarks) -> str:
    tasks = [one.task(name) for one in among.values() for name in one.names]
    return "\n".join(f"{f'{task.benchmark}/{task.name}':40} {task.metric:16} {task.category}" for task in tasks)


def _print(scored: Sequence[Scores], means: Mapping[str, Mapping[str, Any]]) -> None:
    for one in scored:
        summary = one.summary()
        print(f"{summary['task']}, {summary['metric']}, in percent with its 95 % interval")
        print(_line("all", summary))
        for name, score in sorted(summary["groups"].items()):
            print(_line(f"  {name}", score))
    for name, mean in means.items():
        over = f"the categories of {mean['tasks']}" if mean["over"] == "categories" else f"{mean['tasks']}"
        print(f"{name}, mean over {over} tasks")
        print(_line("overall", dict(mean)))
        for group, score in sorted(mean["groups"].items()):
            print(_line(f"  {group}", score))


@command.guarded
def main() -> None:
    parser = command.Parser(
        prog="python -m wp1.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TASK FILE",
        help="a task (such as hotpotqa, longbench/hotpotqa, passkey or longbench_v2) and its files; can be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--list", action="store_true", help="print the names of all tasks, with metric and category")
    parser.add_argument(
        "--benchmark", metavar="MODULE", help="a module with your own benchmark, such as mypackage.mine"
    )
    args = parser.parse_args()
    among = benchmarks.known(args.benchmark, "--benchmark")
    if args.list:
        print(_list(among))
        return
    scored = [scores_of(task, paths, among) for task, paths in named(args.words, among)]
    means = overalls(scored, among)
    if not args.json:
        _print(scored, means)
    elif len(scored) == 1:
        print(json.dumps(scored[0].summary(), indent=1))
    else:
        print(json.dumps({"tasks": [one.summary() for one in scored], "overall": means}, indent=1))


if __name__ == "__main__":
    main()
