"""python -m wp1.score TASK FILE: scores a file of predictions by a task's official rules, with n and 95 % intervals.

One JSON object a line: a prediction (`prediction`, `pred` or `response`) and what the task is scored by, in the names
that the benchmarks' own prediction files use (`answers`, `ground_truth`, `label`, `outputs`, `answer`; `all_classes`
for LongBench's trec and lsht). No engine is started.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wp1 import command
from wp1.errors import ConfigError
from wp1.quality import longbench, longbench_v2, scoring
from wp1.quality.tasks import Row, Task, find

PREDICTIONS = ("prediction", "pred", "response")
REFERENCES = ("answers", "ground_truth", "label", "outputs", "answer")


def score_file(task: Task, path: Path) -> dict[str, Any]:
    """The score of a whole file, and of the groups that its task is reported by. Raises ConfigError, naming a line."""
    groups: dict[str, list[float]] = defaultdict(list)
    for where, fields in _lines(path):
        prediction, row = _read(task, fields, where)
        try:
            value = task.score(prediction, row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(f"{where} cannot be scored as {task.name} ({error}): check its answers") from error
        for group in ("all", *_groups(task, fields)):
            groups[group].append(value)
    if not groups:
        raise ConfigError(f"{path} has no predictions: one JSON object a line is needed")
    found = {name: scoring.of_task(values) for name, values in groups.items()}
    return {"task": f"{task.benchmark}/{task.name}", "metric": task.metric, **found.pop("all"), "groups": found}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ConfigError(f"{path}:{number} is not an object: one with a prediction is needed")
                yield f"{path}:{number}", fields
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}:{number} is not JSON: {error}") from error


def _read(task: Task, fields: dict[str, Any], where: str) -> tuple[str, Row]:
    prediction = _prediction(task, fields)
    if not isinstance(prediction, str):
        raise ConfigError(f"{where} has no prediction: a text named {', '.join(PREDICTIONS)} is needed")
    answers = next((fields[name] for name in REFERENCES if fields.get(name) is not None), None)
    answers = answers if isinstance(answers, list) else [answers]
    if not answers or answers[0] is None:
        raise ConfigError(f"{where} has no answers: one of {', '.join(REFERENCES)} is needed")
    classes = fields.get("all_classes") or []
    if task.metric == "classification" and not classes:
        raise ConfigError(f'{where} has no "all_classes", which {task.name} is scored by')
    return prediction, Row(id=where, task=task.name, answers=answers, all_classes=classes)


def _prediction(task: Task, fields: dict[str, Any]) -> Any:
    if task.benchmark != longbench_v2.NAME:
        return next((fields[name] for name in PREDICTIONS if name in fields), None)
    # Its own files have what the model said as `response`, and as `pred` the letter taken from it, null for none.
    if isinstance(fields.get("response"), str) or "pred" not in fields:
        return fields.get("response", fields.get("prediction"))
    return f"The correct answer is ({fields['pred']})" if fields["pred"] else ""


def _groups(task: Task, fields: dict[str, Any]) -> list[str]:
    """LongBench-E by length, LongBench v2 by difficulty and length; where the file says them."""
    if task.benchmark == longbench_v2.NAME:
        known = (*longbench_v2.DIFFICULTIES, *longbench_v2.LENGTHS)
        return [str(fields[key]) for key in ("difficulty", "length") if fields.get(key) in known]
    group = longbench.length_group(task.name, fields.get("length")) if task.benchmark == longbench.NAME else None
    return [group] if group else []


def _line(name: str, score: dict[str, Any]) -> str:
    few = f"  ({score['n']} answers: hardly a measurement)" if score["n"] < scoring.FEW else ""
    return f"{name:32} {score['mean']:7.2f}  [{score['low']:.2f}, {score['high']:.2f}]  n = {score['n']:,}{few}"


def main() -> None:
    parser = command.Parser(
        prog="python -m wp1.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="as hotpotqa, longbench/hotpotqa, passkey, niah_single_1, longbench_v2")
    parser.add_argument("file", type=Path, help="predictions, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    words = parser.parse_args()
    try:
        found = score_file(find(words.task), words.file)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if words.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['task']}, {found['metric']}, in percent with its 95 % interval")
    print(_line("all", found))
    for name, score in sorted(found["groups"].items()):
        print(_line(f"  {name}", score))


if __name__ == "__main__":
    command.run(main)
