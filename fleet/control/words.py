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
says it is. Of a retired device only a last word does so: nobody waits for it. Its first final word
stands; a later one that differs changes nothing. But for `refused`: a refusal takes nobody's id, so
an order that goes both ways may be refused at the broker for want of a signature, and be taken from
the stick, whose bundle is signed. Then the end of what was done stands; nothing else follows it.
Nor after `id_taken`: the words of that id are on another command.
"""

from agent.protocol.commands import ENDED, Result

OURS_ENDED = ("lapsed", "withdrawn")
BAD = ("failed", "interrupted", "refused")
MISSED = ("expired", *OURS_ENDED)
ALL = ("planned", "waiting", "carried", "sent", "accepted", "running", *ENDED, *OURS_ENDED)
_DONE = ("succeeded", "failed", "interrupted")  # it was begun
_RANK = {"accepted": 1, "running": 2}


def is_news(state: str, reason: str, result: Result, *, is_retired: bool = False) -> bool:
    """Whether a device's word says more than what is known; repeats and stragglers do not."""
    if state == "refused" and reason != "id_taken" and result.state in _DONE:
        return True  # another door took it
    if state in ENDED or (is_retired and not result.ended):
        return False
    if result.ended:
        return True
    return _RANK[result.state] >= _RANK.get(state, 0)
