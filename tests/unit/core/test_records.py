from wp1.core.records import Request, new_record


def test_a_new_record_counts_as_aborted_until_it_ends() -> None:
    assert new_record(Request("r", "a", "c", 0, "p", 1, 0), 0.0).status == "aborted"
