"""Checks that the Hugging Face hub answers. Its own client waits forever for a server that accepts and stays silent."""

import urllib.error
import urllib.request

from wp1.core.errors import ConfigError

# Time limits for the first answer of any kind, and for each further piece in each of the client's few attempts.
ANSWER_WITHIN_S = 10.0
PIECE_WITHIN_S = 30.0


def check_answers(instead: str) -> None:
    """Raises ConfigError if the hub does not answer; gives the hub's client a time limit for later silence.

    instead: the setting that makes the hub unnecessary, for the message. A hub that refuses, or whose name cannot be
    resolved, is left to the client: it notices quickly and uses what was fetched before. With HF_HUB_OFFLINE=1, nothing
    is sent.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=ANSWER_WITHIN_S)
    except (TimeoutError, urllib.error.URLError) as error:
        if isinstance(error, TimeoutError) or isinstance(error.reason, TimeoutError):
            raise ConfigError(
                f"the hub at {constants.ENDPOINT} did not answer in {ANSWER_WITHIN_S:g} s: check the network and "
                f"HF_ENDPOINT, set {instead}, or HF_HUB_OFFLINE=1 to use what was fetched before"
            ) from error
    except OSError:  # the connection was closed without an answer
        pass
    get_session().timeout = PIECE_WITHIN_S
