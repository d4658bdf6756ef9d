"""CSV traces: Azure's and BurstGPT's columns, and rows that are refused."""

from pathlib import Path

import pytest

from tests.unit.workload.traces import MOONCAKE, read
from wp1.core.errors import ConfigError
from wp1.workload import trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_azure_csv(tmp_path: Path) -> None:
    """2023 with seven decimals, 2024 with a time zone. Rows may be in any order; failed requests are left out."""
    text = (
        AZURE + "2023-11-16 18:15:47.6805900,374,44\n\n2023-11-16 18:15:46.6805900,396,109\n2023-11-16 18:16:00,5,0\n"
    )
    recorded = read(tmp_path, text, "azure.csv")
    assert [(row.line, row.prompt_len, row.output_len) for row in recorded.rows] == [(4, 396, 109), (2, 374, 44)]
    assert trace.offsets(recorded.rows, 1.0).tolist() == pytest.approx([0, 1], abs=1e-5)
    assert recorded.words().endswith(
        "2 requests, times as date and time; 1 row with 0 tokens was left out (failed when recorded)"
    )
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,374,44\r\n2024-05-10 01:00:01.009930+01:00,374,44\r\n"
    assert trace.offsets(read(tmp_path, "\ufeff" + text, "a.csv").rows, 1.0).tolist() == pytest.approx([0, 1], abs=1e-5)


def test_burstgpt_csv(tmp_path: Path) -> None:
    text = BURSTGPT + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,0,0,0,API log\n118.5,GPT-4,417,276,693,API log\n"
    recorded = read(tmp_path, text, "b.csv")
    assert (recorded.format.name, recorded.left_out, recorded.block) == ("burstgpt", 1, None)
    assert trace.offsets(recorded.rows, 1.0).tolist() == [0, 113.5]
    newer = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    [row] = read(tmp_path, newer + "5,,3.2,ChatGPT,472,18,490,API log\n", "b.csv").rows
    assert (row.prompt_len, row.output_len) == (472, 18)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"t\.csv:1 does not have the columns .*it has a, b"),
        (
            "Timestamp,Request tokens,Request tokens,Response tokens\n1,5,6,7\n",
            't.csv:1 has the column "Request tokens" twice',
        ),
        (AZURE + "yesterday,1,2\n", r't\.csv:2 has "TIMESTAMP" \'yesterday\': it must be a date and time'),
        (AZURE + "2023-13-40 18:15:46,1,2\n", r't\.csv:2 has "TIMESTAMP" \'2023-13-40'),
        (AZURE + "2023-11-16 18:15:46,1.5,2\n", r't\.csv:2 has "ContextTokens" \'1.5\': it must be a number of tokens'),
        (AZURE + "2023-11-16 18:15:46,1\n", r"t\.csv:2 has 2 values for 3 columns"),
        (BURSTGPT + "-1,a,1,2,3,x\n", r't\.csv:2 has "Timestamp" \'-1\': it must be a number of seconds, 0 or more'),
        (BURSTGPT + "nan,a,1,2,3,x\n", r't\.csv:2 has "Timestamp" \'nan\''),
        (BURSTGPT + "1,a,-1,2,3,x\n", r't\.csv:2 has "Request tokens" \'-1\''),
        (BURSTGPT + "1,a,0,0,0,x\n", r"t\.csv has no requests: all of its 1 rows have 0 tokens"),
        (BURSTGPT, r"t\.csv has no requests"),
        (BURSTGPT + f'1,"{"x" * 200_000}",1,2,3,x\n', r"t\.csv:\d is not a CSV: field larger"),
    ],
)
def test_a_bad_csv_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, "t.csv")


def test_a_format_that_does_not_match_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not have the columns of workload\.trace_format=azure"):
        read(tmp_path, MOONCAKE, trace_format="azure")
    with pytest.raises(ConfigError, match=r"is a CSV, but workload\.trace_format=mooncake is JSON"):
        read(tmp_path, AZURE + "2023-11-16 18:15:46,1,2\n", "t.csv", trace_format="mooncake")
    with pytest.raises(ConfigError, match='has no "time_s"'):
        read(tmp_path, MOONCAKE, trace_format="wp1")
