"""The states of an order: the device's, and the controller's own before and around them.

    planned    a rollout will give it, perhaps
    waiting    to be published
    carried    in a bundle, on its way by stick; the controller does not publish it
    sent       the broker has it; the device has not answered
    accepted, running, succeeded, failed, expired, interrupted, refused: the device's word
    lapsed     it expired before the device said a word
    withdrawn  taken back before the device said a word; it may have got it nevertheless. Or the
               device was retired, whatever it had said

A device's word stands above the controller's: what was lapsed or withdrawn becomes what the device
says it is. Its first final word stands; a later one that differs changes nothing.
"""

from agent.protocol.commands import ENDED, Result

OURS_ENDED = ("lapsed", "withdrawn")
BAD = ("failed", "interrupted", "refused")
MISSED = ("expired", *OURS_ENDED)
ALL = ("planned", "waiting", "carried", "sent", "accepted", "running", *ENDED, *OURS_ENDED)
_RANK = {"accepted": 1, "running": 2}


def is_news(state: str, result: Result) -> bool:
    """Whether a device's word says more than what is known; repeats and stragglers do not."""
    if state in ENDED:
        return False
    if result.ended:
        return True
    return _RANK[result.state] >= _RANK.get(state, 0)
