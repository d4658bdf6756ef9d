"""What a request is called in every arm and repeat."""

import re

FILE = "control.jsonl"


def name_of(request_id: str, alike: bool) -> str:
    """What a request is called in every arm; alike: repeats ask the same, and it is called the same in each."""
    name = request_id.partition("/")[2]
    return re.sub(r"/r\d+/", "/", name, count=1) if alike else name
