"""python -m wp1.score TASK FILE: scores files of predictions by a task's official rules, with n and 95 % intervals.

A file has JSON objects, one a line or in an array: a prediction (`prediction`, `pred` or `response`) and what the task
is scored by, in the names that the benchmarks' own prediction files use (`answers`, `ground_truth`, `label`, `outputs`,
`answer`; `all_classes` for LongBench's trec and lsht; `options` for InfiniteBench's choices, unless the answer is a
text with its letter). A file whose fields or name are of another benchmark or task is refused. No engine is started.

Several at once, with their overall mean (LongBench's over its categories):

  python -m wp1.score hotpotqa a.jsonl qasper b.jsonl     a task before its files
  python -m wp1.score hotpotqa.jsonl preds_passkey.jsonl  files that are called after their tasks
  python -m wp1.score longbench FOLDER                    all files of a folder that are called after its tasks
  python -m wp1.score longbench_e FOLDER                  LongBench-E's, which are called after LongBench's
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
    found = [one.task(name) for one in among.values() for name in one.names]
    return "\n".join(f"{f'{one.benchmark}/{one.name}':40} {one.metric:16} {one.category}" for one in found)


def _print(scored: Sequence[Scores], means: Mapping[str, Mapping[str, Any]]) -> None:
    for one in scored:
        found = one.summary()
        print(f"{found['task']}, {found['metric']}, in percent with its 95 % interval")
        print(_line("all", found))
        for name, score in sorted(found["groups"].items()):
            print(_line(f"  {name}", score))
    for name, found in means.items():
        over = f"the categories of {found['tasks']}" if found["over"] == "categories" else f"{found['tasks']}"
        print(f"{name}, mean over {over} tasks")
        print(_line("overall", dict(found)))
        for group, score in sorted(found["groups"].items()):
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
        help="a task (hotpotqa, longbench/hotpotqa, passkey, niah_single_1, longbench_v2) and its files; more of both",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--list", action="store_true", help="print the names of all tasks, with metric and category")
    parser.add_argument(
        "--benchmark", metavar="MODULE", help="a module with a benchmark of your own, as mypackage.mine"
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
