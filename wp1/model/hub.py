"""The Hugging Face hub: whether it answers. Its own client waits for ever where a server accepts and says nothing."""

import urllib.error
import urllib.request

from wp1.core.errors import ConfigError

# For a first answer, of any kind; and for the next piece of one, each of the client's few tries.
ANSWER_WITHIN_S = 10.0
PIECE_WITHIN_S = 30.0


def check_answers(instead: str) -> None:
    """Has the hub's client give up a server that falls silent. Raises ConfigError where the hub does so from the first.

    instead: what the user can set to do without. A hub that refuses, or whose name is unknown, is the client's to
    tell: that is quick, and what was fetched before is then used. HF_HUB_OFFLINE=1 asks nobody.
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
    except OSError:  # hung up without an answer
        pass
    get_session().timeout = PIECE_WITHIN_S
